"""Ring data through SEAL and back, and the claims of docs/wire.md that only SEAL can confirm."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tenseal")

from he_runtime import wire
from he_runtime.backends import seal_bridge, seal_format
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.errors import CiphertextMismatch, KeyMismatch, ParameterError, SecateurError, WireError
from he_runtime.params import CkksParams, find_primes
from he_runtime.ring import RELINEARIZATION, CiphertextData, KeyRecord, KeyRequest, KeySetSpec, SeededPoly

_PRIMES = find_primes(2048, [50, 40, 40, 40, 50])
PARAMS = CkksParams(2048, tuple(_PRIMES[:4]), tuple(_PRIMES[4:]), insecure=True)
OTHER = CkksParams(2048, tuple(_PRIMES[:3]), tuple(_PRIMES[4:]), insecure=True)
SCALE = 2.0**40
# Noise of a fresh symmetric ciphertext and of a key switch, over the scale: far below this at N=2048 and scale 2^40.
TOLERANCE = 2.0**-20


@pytest.fixture(scope="module")
def context() -> Any:
    return seal_bridge.make_context(PARAMS)


@pytest.fixture(scope="module")
def secret() -> SecretKey:
    return SecretKey.generate(PARAMS)


@pytest.fixture(scope="module")
def slots() -> np.ndarray:
    return np.random.default_rng(4).normal(size=PARAMS.slots)


def full(context: Any, ct: CiphertextData) -> CiphertextData:
    """The same ciphertext, its seed expanded by SEAL."""
    return seal_bridge.download_ciphertext(context, PARAMS, seal_bridge.upload_ciphertext(context, PARAMS, ct))


def through_wire(ct: CiphertextData) -> CiphertextData:
    return wire.decode_ciphertexts(wire.encode_ciphertexts([ct], PARAMS), PARAMS, max_count=1)[0]


def assert_equal(left: CiphertextData, right: CiphertextData) -> None:
    assert (left.level, left.scale) == (right.level, right.scale)
    assert all(np.array_equal(a, b) for a, b in zip(left.polys, right.polys, strict=True))


@pytest.mark.parametrize("level", range(4))
def test_encrypt_wire_upload_download_decrypt(level: int, context: Any, secret: SecretKey, slots: np.ndarray) -> None:
    seeded = through_wire(secret.encrypt(slots, level, SCALE))
    assert isinstance(seeded.polys[1], SeededPoly) and seeded.level == level and seeded.scale == SCALE
    expanded = through_wire(full(context, seeded))
    assert np.array_equal(seeded.polys[0], expanded.polys[0])
    assert_equal(expanded, full(context, expanded))
    for ct in (seeded, expanded):
        assert np.abs(secret.decrypt(ct) - slots).max() < TOLERANCE


@pytest.mark.parametrize("bits", [[30, 30, 31], [60, 59.5, 60], [49, 45, 50]])
def test_seeds_expand_as_seal_expands_them(bits: list[float]) -> None:
    """Also where words are rejected: at 60 bits, some of them are."""
    primes = find_primes(2048, bits)
    params = CkksParams(2048, tuple(primes[:2]), tuple(primes[2:]), insecure=True)
    context = seal_bridge.make_context(params)
    c0 = np.ones((2, 2048), np.uint64)
    for generator, first in (("blake2xb", 7), ("shake256", 8), ("blake2xb", 200)):
        raw = bytes((first * i) % 256 for i in range(64))
        poly = SeededPoly("shake256" if generator == "shake256" else "blake2xb", raw, 2)
        handle = seal_bridge.upload_ciphertext(context, params, CiphertextData(1, 2.0, (c0, poly)))
        seal_c1 = seal_bridge.download_ciphertext(context, params, handle).polys[1]
        assert np.array_equal(wire.expand_seed(poly, params.primes, 2048), seal_c1)


def bit_reversed(n: int) -> np.ndarray:
    bits = n.bit_length() - 1
    return np.array([int(f"{i:0{bits}b}"[::-1], 2) for i in range(n)])


def minimal_root(degree: int, q: int) -> int:
    """The smallest primitive 2N-th root of unity modulo q."""
    generator = next(r for g in range(2, 1000) if pow(r := pow(g, (q - 1) // (2 * degree), q), degree, q) == q - 1)
    roots, square, root = [], generator * generator % q, generator
    for _ in range(degree):
        roots.append(root)
        root = root * square % q
    return min(roots)


def test_evaluation_form_and_slot_order_are_as_documented(context: Any) -> None:
    """The polynomial Delta * X has slots exp(i pi 3^k / N) and residues Delta * psi^(2 bitrev(j) + 1)."""
    n, scale = PARAMS.degree, 2.0**20
    exponents = [pow(3, k, 2 * n) for k in range(n // 2)]
    slots = np.exp(1j * math.pi * np.array(exponents) / n)
    seal = seal_bridge.sealapi()
    plain = seal.Plaintext()
    seal.CKKSEncoder(context).encode(slots.tolist(), seal_bridge.parms_id(context, 3), scale, plain)
    words = np.frombuffer(seal_format.body(seal_bridge.save_object(plain))[-8 * 4 * n :], "<u8").reshape(4, n)
    order = bit_reversed(n)
    for row, q in zip(words, PARAMS.primes, strict=True):
        psi = minimal_root(n, q)
        expected = [int(scale) * pow(psi, 2 * int(order[j]) + 1, q) % q for j in range(n)]
        assert row.tolist() == expected


def make_keys(secret: SecretKey, *requests: tuple[int, int]) -> dict[int, KeyRecord]:
    return {r.element: r for r in secret.make_keys(KeySetSpec(tuple(KeyRequest(*r) for r in requests)))}


def cut(record: KeyRecord, level: int) -> KeyRecord:
    """A full-chain key cut to `level`: fewer digits, fewer rows, the seeds as they were."""
    rows = [*range(level + 1), len(PARAMS.primes)]
    return KeyRecord(record.element, level, tuple((b[rows], a) for b, a in record.digits[: level + 1]))


def expanded(record: KeyRecord) -> KeyRecord:
    chain = (*PARAMS.primes, *PARAMS.special)
    rows = [*range(record.level + 1), len(PARAMS.primes)]
    digits = []
    for b, a in record.digits:
        assert isinstance(a, SeededPoly)
        digits.append((b, wire.expand_seed(a, chain, PARAMS.degree)[rows]))
    return KeyRecord(record.element, record.level, tuple(digits))


def key_through_wire(record: KeyRecord) -> KeyRecord:
    return wire.decode_key(wire.encode_key(record, PARAMS), PARAMS)


@pytest.mark.parametrize("level", range(4))
def test_level_cut_keys_rotate_bit_identically(level: int, context: Any, secret: SecretKey, slots: np.ndarray) -> None:
    """At its level and below; seeded and in full; straight from memory and over the wire."""
    element = PARAMS.galois_element(5)
    whole = make_keys(secret, (element, PARAMS.max_level))[element]
    variants = [cut(whole, level), expanded(cut(whole, level)), key_through_wire(expanded(cut(whole, level)))]
    evaluator, ciphertext = seal_bridge.sealapi().Evaluator(context), seal_bridge.sealapi().Ciphertext

    def rotated(record: KeyRecord, ct: CiphertextData) -> CiphertextData:
        galois, relin = seal_bridge.upload_keys(context, PARAMS, {element: record})
        assert relin is None
        out = ciphertext()
        evaluator.apply_galois(seal_bridge.upload_ciphertext(context, PARAMS, ct), element, galois, out)
        return seal_bridge.download_ciphertext(context, PARAMS, out)

    for at in {level, max(0, level - 1)}:
        ct = secret.encrypt(slots, at, SCALE if at else 2.0**35)
        reference = rotated(whole, ct)
        assert np.abs(secret.decrypt(reference) - np.roll(slots, -5)).max() < 2.0**-12
        for record in variants:
            assert_equal(rotated(record, ct), reference)


@pytest.mark.parametrize("level", [1, 2])
def test_level_cut_relinearization_is_bit_identical(
    level: int, context: Any, secret: SecretKey, slots: np.ndarray
) -> None:
    whole = make_keys(secret, (RELINEARIZATION, PARAMS.max_level))[RELINEARIZATION]
    seal = seal_bridge.sealapi()
    evaluator = seal.Evaluator(context)
    square = seal.Ciphertext()
    ct = secret.encrypt(slots, level, 2.0**35)
    evaluator.square(seal_bridge.upload_ciphertext(context, PARAMS, ct), square)
    data = through_wire(seal_bridge.download_ciphertext(context, PARAMS, square))
    assert len(data.polys) == 3 and np.abs(secret.decrypt(data) - slots**2).max() < 2.0**-12

    def relinearized(record: KeyRecord) -> CiphertextData:
        galois, relin = seal_bridge.upload_keys(context, PARAMS, {RELINEARIZATION: record})
        assert galois is None
        out = seal.Ciphertext()
        evaluator.relinearize(seal_bridge.upload_ciphertext(context, PARAMS, data), relin, out)
        return seal_bridge.download_ciphertext(context, PARAMS, out)

    reference = relinearized(whole)
    assert np.abs(secret.decrypt(reference) - slots**2).max() < 2.0**-12
    for record in (cut(whole, level), key_through_wire(expanded(cut(whole, level)))):
        assert_equal(relinearized(record), reference)


def test_many_keys_in_one_upload(context: Any, secret: SecretKey, slots: np.ndarray) -> None:
    elements = [PARAMS.galois_element(s) for s in (1, -3, 100)] + [PARAMS.conjugation_element]
    records = make_keys(secret, *((e, 2) for e in elements), (RELINEARIZATION, 1))
    galois, relin = seal_bridge.upload_keys(context, PARAMS, records)
    assert all(galois.has_key(e) for e in elements) and not galois.has_key(PARAMS.galois_element(2))
    assert relin.has_key(2)
    out = seal_bridge.sealapi().Ciphertext()
    handle = seal_bridge.upload_ciphertext(context, PARAMS, secret.encrypt(slots, 2, SCALE))
    seal_bridge.sealapi().Evaluator(context).apply_galois(handle, elements[2], galois, out)
    back = secret.decrypt(seal_bridge.download_ciphertext(context, PARAMS, out))
    assert np.abs(back - np.roll(slots, -100)).max() < TOLERANCE


def test_no_keys(context: Any) -> None:
    assert seal_bridge.upload_keys(context, PARAMS, {}) == (None, None)


def test_keys_that_do_not_fit_are_refused(context: Any, secret: SecretKey) -> None:
    record = make_keys(secret, (3, 2))[3]
    foreign = {r.element: r for r in SecretKey.generate(OTHER).make_keys(KeySetSpec((KeyRequest(3, 2),)))}[3]
    bad = [
        {5: record},
        {4: replace(record, element=4)},
        {4097: replace(record, element=4097)},
        {3: replace(record, level=4)},
        {3: replace(record, digits=record.digits[:2])},
        {3: replace(record, digits=tuple((b[:, :1024], a) for b, a in record.digits))},
        {3: foreign},
    ]
    for records in bad:
        with pytest.raises(KeyMismatch):
            seal_bridge.upload_keys(context, PARAMS, records)


def test_ciphertexts_that_do_not_fit_are_refused(context: Any) -> None:
    rows = np.ones((2, 2048), np.uint64)
    bad = [
        CiphertextData(4, 2.0, (rows, rows)),
        CiphertextData(-1, 2.0, (rows, rows)),
        CiphertextData(1, 2.0, (rows,)),
        CiphertextData(0, 2.0, (rows, rows)),
        CiphertextData(1, 2.0, (rows[:, :7], rows)),
        CiphertextData(1, 2.0, (rows.astype(np.int64), rows)),
        CiphertextData(1, 2.0, (rows, SeededPoly("blake2xb", bytes(64), 3))),
        CiphertextData(1, 2.0, (SeededPoly("blake2xb", bytes(64), 2), rows)),
    ]
    for ct in bad:
        with pytest.raises(CiphertextMismatch):
            seal_bridge.upload_ciphertext(context, PARAMS, ct)


def test_a_ciphertext_of_another_context_is_refused(context: Any) -> None:
    ours = seal_bridge.make_context(OTHER)
    handle = seal_bridge.upload_ciphertext(ours, OTHER, CiphertextData(2, 2.0, (np.ones((3, 2048), np.uint64),) * 2))
    assert seal_bridge.download_ciphertext(ours, OTHER, handle).level == 2
    swapped = CkksParams(2048, (*_PRIMES[1:4], _PRIMES[0]), tuple(_PRIMES[4:]), insecure=True)
    with pytest.raises(CiphertextMismatch):
        seal_bridge.download_ciphertext(seal_bridge.make_context(swapped), swapped, handle)


def test_parms_ids_are_the_levels(context: Any) -> None:
    ids = [seal_bridge.parms_id(context, level) for level in range(4)]
    assert len(set(ids)) == 4 and list(ids[3]) == context.first_parms_id() and list(ids[0]) == context.last_parms_id()
    for level in (-1, 4):
        with pytest.raises(ParameterError, match="levels 0 to 3"):
            seal_bridge.parms_id(context, level)


def test_several_special_primes_are_not_seals_gadget() -> None:
    with pytest.raises(ParameterError, match="2 special primes"):
        seal_bridge.make_context(CkksParams(2048, tuple(_PRIMES[:3]), tuple(_PRIMES[3:]), insecure=True))


def test_a_ring_of_65536_is_not_refused_by_seal() -> None:
    primes = find_primes(65536, [40, 40])
    assert seal_bridge.make_context(CkksParams(65536, (primes[0],), (primes[1],))).parameters_set()


def test_without_memfd_a_private_file_does(
    context: Any, secret: SecretKey, slots: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal_bridge, "_MEMFD", False)
    assert np.abs(secret.decrypt(full(context, secret.encrypt(slots, 1, SCALE))) - slots).max() < TOLERANCE


def test_damaged_seal_files_are_typed_errors(secret: SecretKey) -> None:
    saved = bytes(seal_bridge.save_object(secret._encryptor.encrypt_zero_symmetric(secret._context.key_parms_id())))
    members = bytes(seal_format.body(saved))
    for data in (b"", saved[:10], saved[:-1], b"\0\0" + saved[2:]):
        with pytest.raises(WireError):
            seal_format.body(data)
    for data in (members[:50], members[:-1], members[:100]):
        with pytest.raises(SecateurError):
            seal_format.read_ciphertext(memoryview(data))
