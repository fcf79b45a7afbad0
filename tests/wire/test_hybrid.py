"""Hybrid keys on the wire: their sizes, and every way in which gadget, digits, rows and parameters can disagree."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime import wire
from he_runtime.errors import KeyMismatch, ParameterError, Reason, SecateurError, WireError
from he_runtime.gadget import MAX_ALPHA
from he_runtime.params import CkksParams, find_primes
from he_runtime.ring import KeyRecord, KeyRequest, KeySetSpec
from tests.wire.arrays import DEGREE, HYBRID, HYBRID_PARAMS, PARAMS, hybrid_key, key, resealed, same_poly, seed

GADGET, ALPHA, DIGITS, FIRST = 88, 90, 92, 96
ROW = DEGREE * 8
KEYS = {
    (level, seeded): wire.encode_key(hybrid_key(3, level, seeded), HYBRID_PARAMS)
    for level in range(3)
    for seeded in (False, True)
}
every_key = pytest.mark.parametrize(("level", "seeded"), KEYS)


def spec_of(records: Sequence[KeyRecord], gadget: str = HYBRID) -> KeySetSpec:
    return KeySetSpec(tuple(KeyRequest(r.element, r.level) for r in records), gadget)


def key_set(records: Sequence[KeyRecord], params: CkksParams = HYBRID_PARAMS, gadget: str = HYBRID) -> bytes:
    file = io.BytesIO()
    with wire.KeySetWriter(file, params, spec_of(records, gadget)) as writer:
        for record in records:
            writer.write(record)
    return file.getvalue()


def refused(data: bytes, params: CkksParams = HYBRID_PARAMS) -> SecateurError:
    with pytest.raises(SecateurError) as caught:
        wire.decode_key(data, params)
    return caught.value


@every_key
def test_round_trip_and_exact_size(level: int, seeded: bool) -> None:
    record, data = hybrid_key(3, level, seeded), KEYS[level, seeded]
    back = wire.decode_key(data, HYBRID_PARAMS)
    assert (back.element, back.level, back.gadget) == (3, level, HYBRID)
    assert len(back.digits) == (1, 1, 2)[level]
    for left, right in zip(back.digits, record.digits, strict=True):
        assert all(same_poly(a, b) for a, b in zip(left, right, strict=True))
    digit = (8 + (level + 3) * ROW) * (1 if seeded else 2) + (72 if seeded else 0)
    assert len(data) == FIRST + len(back.digits) * digit
    assert len(data) == wire.key_byte_size(level, HYBRID_PARAMS, seeded, HYBRID)
    # A spec's size counts residues alone: no headers, no seeds.
    around = FIRST + len(back.digits) * (16 + 64 * seeded)
    assert KeyRequest(3, level).byte_size(HYBRID_PARAMS, seeded, HYBRID) == len(data) - around


@pytest.mark.parametrize("seeded", [False, True])
def test_a_key_set_of_exactly_the_stated_size(seeded: bool) -> None:
    records = [hybrid_key(0, 2, seeded), hybrid_key(3, 0, seeded), hybrid_key(2047, 1, seeded)]
    data = key_set(records)
    assert len(data) == wire.key_set_byte_size(spec_of(records), HYBRID_PARAMS, seeded)
    back = list(wire.read_key_set(io.BytesIO(data), HYBRID_PARAMS, HYBRID))
    assert key_set(back) == data


@every_key
@pytest.mark.parametrize(
    ("code", "alpha"),
    [(0, 0), (0, 2), (1, 1), (1, 2), (1, 65535), (2, 0), (2, MAX_ALPHA + 1), (2, 65535), (3, 0), (3, 2), (65535, 2)],
)
def test_gadgets_that_there_are_not(level: int, seeded: bool, code: int, alpha: int) -> None:
    error = refused(resealed(KEYS[level, seeded], lambda d: struct.pack_into("<HH", d, GADGET, code, alpha)))
    assert isinstance(error, WireError) and error.reason is Reason.VERSION_UNKNOWN


@every_key
def test_a_gadget_that_the_parameters_have_no_special_primes_for(level: int, seeded: bool) -> None:
    for code, alpha in ((1, 0), (2, 3), (2, MAX_ALPHA)):  # seal has one special prime; digits of three exceed two
        error = refused(
            resealed(KEYS[level, seeded], lambda d, c=code, a=alpha: struct.pack_into("<HH", d, GADGET, c, a))
        )
        assert isinstance(error, KeyMismatch) and error.reason is Reason.KEY_PARAMETERS_DIFFER


def test_another_digit_size_that_fits_does_not_fit_the_digits() -> None:
    error = refused(resealed(KEYS[2, True], lambda d: struct.pack_into("<H", d, ALPHA, 1)))
    assert error.reason is Reason.SIZE_MISMATCH and "got 2 digits, need 3" in error.message


@every_key
@pytest.mark.parametrize("count", [0, 3, 4, 1 << 31, (1 << 32) - 1])
def test_counts_of_digits(level: int, seeded: bool, count: int) -> None:
    error = refused(resealed(KEYS[level, seeded], lambda d: struct.pack_into("<I", d, DIGITS, count)))
    assert error.reason is Reason.SIZE_MISMATCH


@every_key
def test_a_digit_too_few_or_too_many_with_every_byte_accounted_for(level: int, seeded: bool) -> None:
    data = KEYS[level, seeded]
    count = (1, 1, 2)[level]
    digit = (len(data) - FIRST) // count
    for other, body in ((count - 1, data[:-digit]), (count + 1, data + data[-digit:])):
        for stated in (other, count):
            edited = bytearray(body)
            struct.pack_into("<I", edited, DIGITS, stated)
            struct.pack_into("<Q", edited, 8, len(edited) - 80)
            error = refused(resealed(bytes(edited), lambda _: None))
            assert error.reason in (Reason.SIZE_MISMATCH, Reason.BYTES_TRUNCATED, Reason.BYTES_MALFORMED)


@pytest.mark.parametrize("limbs", [0, 3, 4, 6, 1 << 31, (1 << 32) - 1])
def test_rows_are_those_of_the_level_and_seeds_those_of_the_chain(limbs: int) -> None:
    """At level 2 both are five; a key without its second special prime, or with a row too many, is refused."""
    for offset in (FIRST + 4, FIRST + 8 + 5 * ROW + 4):
        error = refused(resealed(KEYS[2, True], lambda d, o=offset: struct.pack_into("<I", d, o, limbs)))
        assert error.reason is Reason.SIZE_MISMATCH


def test_a_seed_of_a_cut_key_still_draws_the_whole_chain() -> None:
    record = hybrid_key(3, 0, True)
    assert all(a.limbs == 5 for _, a in record.digits)  # type: ignore[union-attr]
    for limbs in (3, 4, 6):
        cut = replace(record, digits=tuple((b, seed(limbs, 0)) for b, _ in record.digits))
        with pytest.raises(WireError) as caught:
            wire.encode_key(cut, HYBRID_PARAMS)
        assert caught.value.reason is Reason.SIZE_MISMATCH


@pytest.mark.parametrize("row", range(5))
def test_each_row_is_below_its_own_prime_the_special_ones_too(row: int) -> None:
    q = (*HYBRID_PARAMS.primes, *HYBRID_PARAMS.special)[row]
    for digit in range(2):
        offset = FIRST + digit * (len(KEYS[2, False]) - FIRST) // 2 + 8 + row * ROW + 8 * 77
        error = refused(resealed(KEYS[2, False], lambda d, o=offset: struct.pack_into("<Q", d, o, q)))
        assert error.reason is Reason.RESIDUE_OUT_OF_RANGE
        good = resealed(KEYS[2, False], lambda d, o=offset: struct.pack_into("<Q", d, o, q - 1))
        assert wire.encode_key(wire.decode_key(good, HYBRID_PARAMS), HYBRID_PARAMS) == good


def test_mixed_forms_and_zero_masks() -> None:
    record, full = hybrid_key(3, 2, True), hybrid_key(3, 2, False)
    with pytest.raises(WireError, match="one form"):
        wire.encode_key(replace(record, digits=(record.digits[0], full.digits[1])), HYBRID_PARAMS)
    b, a = full.digits[1]
    with pytest.raises(WireError, match="zero"):
        wire.encode_key(replace(full, digits=(full.digits[0], (b, np.zeros_like(np.asarray(a))))), HYBRID_PARAMS)


def test_records_that_disagree_with_their_gadget_are_not_written() -> None:
    record = hybrid_key(3, 2, True)
    with pytest.raises(WireError) as caught:
        wire.encode_key(replace(record, gadget="hybrid-1"), HYBRID_PARAMS)
    assert caught.value.reason is Reason.SIZE_MISMATCH
    for gadget in ("seal", "hybrid-3", "hybrid", "", "hybrid-02"):
        with pytest.raises(KeyMismatch):
            wire.encode_key(replace(record, gadget=gadget), HYBRID_PARAMS)
    with pytest.raises(KeyMismatch):
        wire.encode_key(replace(key(3, 1, True), gadget="hybrid-2"), PARAMS)


def test_hybrid_with_one_prime_per_digit_is_not_the_same_as_seal() -> None:
    """Two names, two encodings; a record says which it is, and a reader who needs the other refuses it."""
    (special,) = find_primes(DEGREE, [37])
    params = CkksParams(DEGREE, PARAMS.primes, (special,), insecure=True)
    records = {g: key(3, 1, True, params=params, gadget=g) for g in ("seal", "hybrid-1")}
    encoded = {g: wire.encode_key(r, params) for g, r in records.items()}
    assert len(encoded["seal"]) == len(encoded["hybrid-1"]) and encoded["seal"] != encoded["hybrid-1"]
    for mine, other in (("seal", "hybrid-1"), ("hybrid-1", "seal")):
        assert wire.decode_key(encoded[mine], params).gadget == mine
        with pytest.raises(KeyMismatch, match="need") as caught:
            list(wire.read_key_set(io.BytesIO(key_set([records[mine]], params, mine)), params, other))
        assert caught.value.reason is Reason.KEY_PARAMETERS_DIFFER
        with pytest.raises(KeyMismatch) as caught:
            wire.KeySetWriter(io.BytesIO(), params, spec_of([records[mine]], other)).write(records[mine])
        assert caught.value.reason is Reason.KEY_PARAMETERS_DIFFER


def test_a_key_set_is_read_on_the_gadget_that_the_plan_needs() -> None:
    data = key_set([hybrid_key(3, 2, True)])
    with pytest.raises(WireError) as caught:
        list(wire.read_key_set(io.BytesIO(data), HYBRID_PARAMS, "hybrid-1"))
    assert caught.value.reason is Reason.SIZE_MISMATCH
    for gadget in ("seal", "hybrid-3"):
        with pytest.raises(KeyMismatch):
            list(wire.read_key_set(io.BytesIO(data), HYBRID_PARAMS, gadget))
    with pytest.raises(KeyMismatch):
        wire.KeySetWriter(io.BytesIO(), HYBRID_PARAMS, spec_of([hybrid_key(3, 2, True)], "seal"))
    with pytest.raises(ParameterError):
        wire.key_byte_size(0, HYBRID_PARAMS, True, "hybrid-0")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_resealed_edit_is_refused_or_canonical(draw: st.DataObject) -> None:
    data = KEYS[draw.draw(st.sampled_from(sorted(KEYS)))]
    near = st.integers(80, FIRST + 16)
    position = draw.draw(st.one_of(near, near, st.integers(80, len(data) - 9)))
    value = draw.draw(st.binary(min_size=1, max_size=8))
    edited = resealed(data, lambda d: d.__setitem__(slice(position, position + len(value)), value))
    try:
        record = wire.decode_key(edited, HYBRID_PARAMS)
    except SecateurError:
        return
    assert wire.encode_key(record, HYBRID_PARAMS) == edited
