"""No object on the wire can hold a secret key, and what looks like one is refused."""

from __future__ import annotations

import dataclasses
import struct

import numpy as np
import pytest

from he_runtime import ring, wire
from he_runtime.errors import SecateurError
from he_runtime.ring import CiphertextData, KeyRecord, PublicKeyData
from tests.wire.arrays import DEGREE, PARAMS, key, public_key, resealed, residues

ROWS = (*PARAMS.primes, *PARAMS.special)


def ternary(primes: tuple[int, ...]) -> ring.Residues:
    """The residues of a polynomial with coefficients -1, 0 and 1."""
    values = np.random.default_rng(3).integers(-1, 2, DEGREE)
    return np.array([[int(v) % q for v in values] for q in primes], dtype=np.uint64)


def test_no_kind_and_no_type_is_for_secrets() -> None:
    assert {k.name for k in wire.Kind} == {"CIPHERTEXTS", "PUBLIC_KEY", "KEY", "KEY_SET"}
    names = {name for name, value in vars(ring).items() if dataclasses.is_dataclass(value)}
    assert not [n for n in (*names, *wire.__all__) if "secret" in n.lower()]


@pytest.mark.parametrize("number", [0, 5, 6, 255, 65535])
def test_no_decoder_takes_another_kind(number: int) -> None:
    data = resealed(wire.encode_key(key(3, 0, False), PARAMS), lambda d: struct.pack_into("<H", d, 6, number))
    for decode in (wire.decode_key, wire.decode_public_key, lambda d, p: wire.decode_ciphertexts(d, p, max_count=1)):
        with pytest.raises(SecateurError):
            decode(data, PARAMS)


def test_a_lone_polynomial_has_no_place() -> None:
    """A secret key is one polynomial; every object here holds pairs with a nonzero, uniform half."""
    secret = ternary(ROWS)
    zero = np.zeros_like(secret)
    with pytest.raises(SecateurError):
        wire.encode_public_key(PublicKeyData((secret, zero)), PARAMS)
    with pytest.raises(SecateurError):
        wire.encode_key(KeyRecord(3, 2, ((secret, zero),) * 3), PARAMS)
    for polys in ((secret[:3],), (secret[:3], zero[:3]), (secret[:3], zero[:3], zero[:3])):
        with pytest.raises(SecateurError):
            wire.encode_ciphertexts([CiphertextData(2, 1.0, polys)], PARAMS)


def test_a_smuggled_body_is_refused() -> None:
    """The bytes of a secret polynomial under the header of each kind, digests and lengths in order."""
    raw = ternary(ROWS).tobytes()
    carriers = [
        (wire.encode_key(key(3, 0, True), PARAMS), wire.decode_key),
        (wire.encode_public_key(public_key(True), PARAMS), wire.decode_public_key),
        (
            wire.encode_ciphertexts([CiphertextData(0, 1.0, (residues(ROWS[:1], 0),) * 2)], PARAMS),
            lambda d, p: wire.decode_ciphertexts(d, p, max_count=1),
        ),
    ]
    for carrier, decode in carriers:
        smuggled = carrier[:8] + struct.pack("<Q", len(raw)) + carrier[16:80] + raw
        with pytest.raises(SecateurError):
            decode(resealed(smuggled, lambda _: None), PARAMS)
        with pytest.raises(SecateurError):
            decode(raw, PARAMS)
