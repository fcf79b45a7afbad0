"""The golden bytes: what this codec wrote when version 1 was fixed, it still writes and reads, byte for byte."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from pathlib import Path

import pytest

from he_runtime import wire
from he_runtime.params import CkksParams
from he_runtime.ring import KeyRequest, KeySetSpec, SeededPoly
from tests.vectors.wire import generate

FOLDER = Path(generate.__file__).parent
VECTORS = json.loads((FOLDER / "vectors.json").read_text())
PARAMS = CkksParams.from_json(VECTORS["params"])
HYBRID_PARAMS = CkksParams.from_json(VECTORS["hybrid_params"])


def recoded(name: str, data: bytes) -> bytes:
    if name == "ciphertexts.bin":
        return wire.encode_ciphertexts(wire.decode_ciphertexts(data, PARAMS, max_count=3), PARAMS)
    if name == "public_key.bin":
        return wire.encode_public_key(wire.decode_public_key(data, PARAMS), PARAMS)
    if name == "key.bin":
        return wire.encode_key(wire.decode_key(data, PARAMS), PARAMS)
    if name == "hybrid_key.bin":
        return wire.encode_key(wire.decode_key(data, HYBRID_PARAMS), HYBRID_PARAMS)
    records = list(wire.read_key_set(io.BytesIO(data), PARAMS))
    file = io.BytesIO()
    spec = KeySetSpec(tuple(KeyRequest(r.element, r.level) for r in records))
    with wire.KeySetWriter(file, PARAMS, spec) as writer:
        for record in records:
            writer.write(record)
    return file.getvalue()


@pytest.mark.parametrize("name", sorted(VECTORS["sha256"]))
def test_golden_bytes(name: str) -> None:
    data = (FOLDER / name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == VECTORS["sha256"][name]
    assert recoded(name, data) == data
    assert generate.objects()[name] == data


def test_parameters_digest() -> None:
    """The digest that the header carries, from the canonical JSON that docs/wire.md spells out."""
    primes = ",".join(map(str, VECTORS["params"]["primes"]))
    special = ",".join(map(str, VECTORS["params"]["special"]))
    text = f'{{"degree":1024,"insecure":true,"primes":[{primes}],"special":[{special}]}}'
    assert hashlib.sha256(text.encode()).hexdigest() == VECTORS["params_digest"] == PARAMS.digest


def test_header_by_hand() -> None:
    """The header of a golden object, from its description alone."""
    data = (FOLDER / "key.bin").read_bytes()
    body = data[80:]
    prefix = b"SCTR" + struct.pack("<HHQ", 1, 3, len(body)) + bytes.fromhex(VECTORS["params_digest"])
    assert data[:80] == prefix + hashlib.sha256(prefix + body).digest()


def test_residues_by_hand() -> None:
    """First residues of key.bin, digit 0: b has salt 5, a has salt 6; rows are primes[0] and the special prime."""
    data = (FOLDER / "key.bin").read_bytes()
    q, p = PARAMS.primes[0], PARAMS.special[0]
    assert struct.unpack_from("<IIII", data, 80) == (3, 0, 1, 1)
    assert struct.unpack_from("<IIQQ", data, 96) == (0, 2, (2654435761 + 5) % q, (2 * 2654435761 + 5) % q)
    assert struct.unpack_from("<Q", data, 96 + 8 + 1024 * 8) == ((1025 * 2654435761 + 5) % p,)
    assert struct.unpack_from("<IIQ", data, 96 + 8 + 2048 * 8) == (0, 2, (2654435761 + 6) % q)


def test_a_hybrid_key_by_hand() -> None:
    """hybrid_key.bin: element 5 at level 2 in digits of two primes, b of salts 8 and 10, seeds of salts 8 and 9."""
    data = (FOLDER / "hybrid_key.bin").read_bytes()
    assert data[16:48].hex() == VECTORS["hybrid_params_digest"] == HYBRID_PARAMS.digest
    assert struct.unpack_from("<IIHHI", data, 80) == (5, 2, 2, 2, 2)
    digit = 8 + 5 * 1024 * 8 + 8 + 64  # b: three live rows and two special ones; a: the seed of five rows
    assert len(data) == 96 + 2 * digit
    for d, (b_salt, a_salt) in enumerate(((8, 8), (10, 9))):
        start = 96 + d * digit
        assert struct.unpack_from("<II", data, start) == (0, 5)
        for row, q in enumerate((*HYBRID_PARAMS.primes, *HYBRID_PARAMS.special)):
            first = ((1024 * row + 1) * 2654435761 + b_salt) % q
            assert struct.unpack_from("<Q", data, start + 8 + row * 1024 * 8) == (first,)
        seed = bytes((7 * i + a_salt) % 256 for i in range(64))
        assert data[start + digit - 72 : start + digit] == struct.pack("<II", 1, 5) + seed


@pytest.mark.parametrize("case", VECTORS["expansions"], ids=lambda c: c["generator"])
def test_expansions(case: dict[str, object]) -> None:
    primes = case["primes"]
    assert isinstance(primes, list)
    poly = SeededPoly(case["generator"], bytes.fromhex(str(case["seed"])), len(primes))  # type: ignore[arg-type]
    rows = wire.expand_seed(poly, primes, 1024).astype("<u8").tobytes()
    assert hashlib.sha256(rows).hexdigest() == case["sha256"]
