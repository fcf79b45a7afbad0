"""decode(encode(x)) == x for everything the codec can hold, and encode(decode(b)) == b."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime import wire
from he_runtime.errors import CiphertextMismatch, KeyMismatch, SecateurError, WireError
from he_runtime.ring import CiphertextData, KeyRecord, KeyRequest, KeySetSpec, PublicKeyData, SeededPoly
from tests.wire.arrays import CHAIN, DEGREE, PARAMS, ciphertext, key, public_key, residues, same_poly, seed

levels = st.integers(0, PARAMS.max_level)
generators = st.sampled_from(["", "blake2xb", "shake256"])
elements = st.one_of(st.just(0), st.integers(1, DEGREE - 1).map(lambda i: 2 * i + 1))


@st.composite
def ciphertexts(draw: st.DrawFn) -> CiphertextData:
    level, size = draw(levels), draw(st.sampled_from([2, 3]))
    scale = draw(st.floats(1.0, 2.0 ** (PARAMS.log2_q(level) - 0.01), allow_subnormal=False))
    return ciphertext(level, scale, size, draw(generators) if size == 2 else "", draw(st.integers(0, 1 << 40)))


def assert_same(left: CiphertextData, right: CiphertextData) -> None:
    assert (left.level, left.scale, len(left.polys)) == (right.level, right.scale, len(right.polys))
    assert all(same_poly(a, b) for a, b in zip(left.polys, right.polys, strict=True))


def assert_same_key(left: KeyRecord, right: KeyRecord) -> None:
    assert (left.element, left.level, left.gadget) == (right.element, right.level, right.gadget)
    for (b, a), (d, c) in zip(left.digits, right.digits, strict=True):
        assert same_poly(b, d) and same_poly(a, c)


@settings(max_examples=60, deadline=None)
@given(st.lists(ciphertexts(), max_size=4))
def test_ciphertexts(cts: list[CiphertextData]) -> None:
    data = wire.encode_ciphertexts(cts, PARAMS)
    back = wire.decode_ciphertexts(data, PARAMS, max_count=4)
    assert len(back) == len(cts)
    for left, right in zip(cts, back, strict=True):
        assert_same(left, right)
    assert wire.encode_ciphertexts(back, PARAMS) == data


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("level", range(PARAMS.max_level + 1))
def test_ciphertext_size_is_as_stated(level: int, size: int) -> None:
    cts = [ciphertext(level, size=size)] * 3
    assert len(wire.encode_ciphertexts(cts, PARAMS)) == wire.ciphertexts_byte_size(3, level, PARAMS, polys=size)
    fresh = [ciphertext(level, generator="blake2xb")]
    assert len(wire.encode_ciphertexts(fresh, PARAMS)) == wire.ciphertexts_byte_size(1, level, PARAMS, seeded=True)


@settings(max_examples=40, deadline=None)
@given(elements, levels, st.booleans(), st.integers(0, 1 << 30))
def test_keys(element: int, level: int, seeded: bool, salt: int) -> None:
    record = key(element, level, seeded, salt)
    data = wire.encode_key(record, PARAMS)
    assert len(data) == wire.key_byte_size(level, PARAMS, seeded)
    back = wire.decode_key(data, PARAMS)
    assert_same_key(record, back)
    assert wire.encode_key(back, PARAMS) == data


@pytest.mark.parametrize("seeded", [True, False])
def test_public_key(seeded: bool) -> None:
    public = public_key(seeded, 5)
    data = wire.encode_public_key(public, PARAMS)
    back = wire.decode_public_key(data, PARAMS)
    assert all(same_poly(a, b) for a, b in zip(public.polys, back.polys, strict=True))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(elements, levels), unique_by=lambda r: r[0], max_size=4), st.booleans())
def test_key_sets(requests: list[tuple[int, int]], seeded: bool) -> None:
    spec = KeySetSpec(tuple(KeyRequest(*r) for r in requests))
    records = [key(r.element, r.level, seeded, i) for i, r in enumerate(spec.requests)]
    file = io.BytesIO()
    with wire.KeySetWriter(file, PARAMS, spec) as writer:
        for record in records:
            writer.write(record)
    assert len(file.getvalue()) == wire.key_set_byte_size(spec, PARAMS, seeded)
    for left, right in zip(records, wire.read_key_set(file, PARAMS), strict=True):
        assert_same_key(left, right)


def test_residues_are_views_of_the_input() -> None:
    data = wire.encode_ciphertexts([ciphertext(2)], PARAMS)
    (back,) = wire.decode_ciphertexts(data, PARAMS, max_count=1)
    assert all(isinstance(p, np.ndarray) and not p.flags.owndata and not p.flags.writeable for p in back.polys)


def test_any_bytes_like_input() -> None:
    data = wire.encode_key(key(3, 1, True), PARAMS)
    assert_same_key(wire.decode_key(memoryview(data), PARAMS), wire.decode_key(bytearray(data), PARAMS))


BAD_CIPHERTEXTS = {
    "negative level": (CiphertextData(-1, 2.0, ciphertext(0).polys), CiphertextMismatch),
    "level above the chain": (CiphertextData(3, 2.0, ciphertext(2).polys), CiphertextMismatch),
    "rows of another level": (CiphertextData(1, 2.0, ciphertext(0).polys), WireError),
    "one polynomial": (CiphertextData(0, 2.0, ciphertext(0).polys[:1]), CiphertextMismatch),
    "seeded c0": (CiphertextData(0, 2.0, (seed(1, 0), residues(PARAMS.primes[:1], 0))), WireError),
    "seeded c2": (CiphertextData(0, 2.0, (*ciphertext(0).polys, seed(1, 0))), WireError),
    "seed for other rows": (CiphertextData(1, 2.0, (ciphertext(1).polys[0], seed(3, 0))), WireError),
    "short seed": (CiphertextData(0, 2.0, (ciphertext(0).polys[0], SeededPoly("blake2xb", b"", 1))), WireError),
    "signed residues": (CiphertextData(0, 2.0, (ciphertext(0).polys[0].astype(np.int64),) * 2), WireError),
    "transparent": (CiphertextData(0, 2.0, (ciphertext(0).polys[0], np.zeros((1, DEGREE), np.uint64))), WireError),
    "infinite scale": (ciphertext(0, float("inf")), CiphertextMismatch),
    "scale above the modulus": (ciphertext(0, 2.0**31), CiphertextMismatch),
}


@pytest.mark.parametrize("name", BAD_CIPHERTEXTS)
def test_encoder_refuses(name: str) -> None:
    ct, error = BAD_CIPHERTEXTS[name]
    with pytest.raises(error):
        wire.encode_ciphertexts([ct], PARAMS)


def test_encoder_refuses_a_key_of_mixed_form_or_shape() -> None:
    full, seeded = key(3, 1, False), key(3, 1, True)
    mixed = KeyRecord(3, 1, (full.digits[0], seeded.digits[1]))
    short = KeyRecord(3, 1, full.digits[:1])
    wrong = KeyRecord(4, 1, full.digits)
    cut_seed = KeyRecord(3, 1, tuple((b, seed(3, 0)) for b, _ in full.digits))
    zero_a = KeyRecord(3, 1, tuple((b, np.zeros_like(b)) for b, _ in full.digits))
    for record in (mixed, short, wrong, cut_seed, zero_a):
        with pytest.raises(SecateurError):
            wire.encode_key(record, PARAMS)


def test_encoder_refuses_a_public_key_that_would_not_encrypt() -> None:
    rows = residues((*PARAMS.primes, *PARAMS.special), 0)
    with pytest.raises(WireError):
        wire.encode_public_key(PublicKeyData((rows, np.zeros((CHAIN, DEGREE), np.uint64))), PARAMS)


def test_writer_takes_exactly_the_spec() -> None:
    spec = KeySetSpec((KeyRequest(0, 1), KeyRequest(5, 0)))
    writer = wire.KeySetWriter(io.BytesIO(), PARAMS, spec)
    with pytest.raises(KeyMismatch, match="element 0 at level 1"):
        writer.write(key(5, 0, True))
    writer.write(key(0, 1, True))
    with pytest.raises(KeyMismatch, match="1 records, need 2"):
        writer.close()
    writer.write(key(5, 0, True))
    with pytest.raises(KeyMismatch, match="no more"):
        writer.write(key(5, 0, True))
    with pytest.raises(WireError, match="twice"):
        wire.KeySetWriter(io.BytesIO(), PARAMS, KeySetSpec((KeyRequest(3, 1), KeyRequest(3, 0))))


def test_a_set_is_its_front_and_its_records_wherever_these_lie() -> None:
    spec = KeySetSpec((KeyRequest(0, 1), KeyRequest(5, 0), KeyRequest(25, 1)))
    records = [key(r.element, r.level, True, i) for i, r in enumerate(spec.requests)]
    whole = io.BytesIO()
    with wire.KeySetWriter(whole, PARAMS, spec) as writer:
        for record in records:
            writer.write(record)
    encoded = [wire.encode_key(record, PARAMS) for record in records]
    assert whole.getvalue() == writer.front + b"".join(encoded)
    assert [r.sha256 for r in writer.records] == [hashlib.sha256(data).hexdigest() for data in encoded]

    some = io.BytesIO()
    with wire.KeySetWriter(some, PARAMS, spec) as second:
        second.refer(writer.records[0])
        second.write(records[1])
        second.refer(writer.records[2])
    assert second.front == writer.front and second.records == writer.records
    assert some.getvalue() == writer.front + encoded[1]


def test_a_writer_refers_to_no_other_record_than_the_next() -> None:
    spec = KeySetSpec((KeyRequest(0, 1), KeyRequest(5, 0)))
    writer = wire.KeySetWriter(io.BytesIO(), PARAMS, spec)
    writer.write(key(0, 1, True))
    (first,) = writer.records
    with pytest.raises(KeyMismatch, match="element 5 at level 0"):
        writer.refer(first)
    with pytest.raises(KeyMismatch, match="none at level 0"):
        writer.refer(replace(first, element=5, level=0))
    with pytest.raises(KeyMismatch, match="1 records, need 2"):
        writer.close()


def test_an_abandoned_key_set_is_not_one() -> None:
    file = io.BytesIO()
    spec = KeySetSpec((KeyRequest(0, 0), KeyRequest(5, 0)))
    with pytest.raises(RuntimeError), wire.KeySetWriter(file, PARAMS, spec) as writer:
        writer.write(key(0, 0, True))
        raise RuntimeError
    with pytest.raises(WireError):
        list(wire.read_key_set(file, PARAMS))
