"""Hostile bytes: always a SecateurError, never another exception, never an allocation that they chose."""

from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime import wire
from he_runtime.errors import CiphertextMismatch, KeyMismatch, ParameterError, Reason, SecateurError, WireError
from he_runtime.ring import KeyRecord, KeyRequest, KeySetSpec
from tests.wire.arrays import DEGREE, OTHER, PARAMS, ciphertext, key, public_key, resealed

HEADER, ROW, POLY = 80, 48, 8
TABLE = 8 + ROW * 2


def write_key_set(records: Sequence[KeyRecord]) -> bytes:
    file = io.BytesIO()
    spec = KeySetSpec(tuple(KeyRequest(r.element, r.level) for r in records))
    with wire.KeySetWriter(file, PARAMS, spec) as writer:
        for record in records:
            writer.write(record)
    return file.getvalue()


CIPHERTEXTS = wire.encode_ciphertexts([ciphertext(1), ciphertext(0, generator="blake2xb")], PARAMS)
KEY = wire.encode_key(key(3, 1, False), PARAMS)
SEEDED_KEY = wire.encode_key(key(0, 1, True), PARAMS)
PUBLIC = wire.encode_public_key(public_key(True), PARAMS)
KEY_SET = write_key_set([key(0, 1, True), key(3, 0, True)])


DECODE: dict[str, Callable[[bytes], Any]] = {
    "ciphertexts": lambda d: wire.decode_ciphertexts(d, PARAMS, max_count=8),
    "key": lambda d: wire.decode_key(d, PARAMS),
    "seeded key": lambda d: wire.decode_key(d, PARAMS),
    "public key": lambda d: wire.decode_public_key(d, PARAMS),
    "key set": lambda d: list(wire.read_key_set(io.BytesIO(d), PARAMS)),
}
ENCODE: dict[str, Callable[[Any], bytes]] = {
    "ciphertexts": lambda cts: wire.encode_ciphertexts(cts, PARAMS),
    "key": lambda record: wire.encode_key(record, PARAMS),
    "seeded key": lambda record: wire.encode_key(record, PARAMS),
    "public key": lambda public: wire.encode_public_key(public, PARAMS),
    "key set": write_key_set,
}
GOOD = {"ciphertexts": CIPHERTEXTS, "key": KEY, "seeded key": SEEDED_KEY, "public key": PUBLIC, "key set": KEY_SET}
every_kind = pytest.mark.parametrize("kind", GOOD)


def refused(kind: str, data: bytes) -> SecateurError:
    """The error; it must not cost more memory than a small multiple of the bytes that came in."""
    tracemalloc.start()
    try:
        with pytest.raises(SecateurError) as caught:
            DECODE[kind](data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(GOOD[kind]) + 200_000
    return caught.value


@every_kind
def test_the_untouched_object_is_accepted(kind: str) -> None:
    assert ENCODE[kind](DECODE[kind](GOOD[kind])) == GOOD[kind]


@every_kind
def test_truncated_at_every_boundary(kind: str) -> None:
    data = GOOD[kind]
    cuts = {*range(HEADER + TABLE + HEADER + 40), *range(len(data) - 100, len(data))}
    cuts |= set(np.random.default_rng(1).integers(0, len(data), 100).tolist())
    for cut in sorted(c for c in cuts if c < len(data)):
        assert refused(kind, data[:cut]).reason is Reason.BYTES_TRUNCATED


@every_kind
def test_truncated_by_a_sender_who_recomputes_the_header(kind: str) -> None:
    data = GOOD[kind]
    for cut in {*range(HEADER, HEADER + 24), len(data) - 8, len(data) - 1}:
        shorter = bytearray(data[:cut])
        shorter[8:16] = struct.pack("<Q", cut - HEADER)
        refused(kind, resealed(bytes(shorter), lambda _: None, TABLE if kind == "key set" else None))


@every_kind
def test_bytes_left_over(kind: str) -> None:
    data = GOOD[kind]
    assert refused(kind, data + b"\0").reason is Reason.BYTES_MALFORMED
    longer = resealed(
        data + bytes(8),
        lambda d: d.__setitem__(slice(8, 16), struct.pack("<Q", len(data) + 8 - HEADER)),
        TABLE if kind == "key set" else None,
    )
    refused(kind, longer)


@every_kind
def test_every_bit_of_the_header_and_many_of_the_body(kind: str) -> None:
    data = GOOD[kind]
    body = np.random.default_rng(2).integers(HEADER, len(data), 60).tolist()
    positions = [*range(HEADER + 48), *body, len(data) - 1]
    for position in positions:
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            with pytest.raises(SecateurError):
                DECODE[kind](bytes(flipped))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_resealed_edit_is_refused_or_canonical(draw: st.DataObject) -> None:
    """What a decoder accepts, it can write back to the same bytes: nothing is ignored, nothing repaired."""
    kind = draw.draw(st.sampled_from(sorted(set(GOOD) - {"key set"})))
    data = GOOD[kind]
    near = st.integers(HEADER, HEADER + 200)
    position = draw.draw(st.one_of(near, near, st.integers(HEADER, len(data) - 9)))
    value = draw.draw(st.binary(min_size=1, max_size=8))
    edited = resealed(data, lambda d: d.__setitem__(slice(position, position + len(value)), value))
    try:
        decoded = DECODE[kind](edited)
    except SecateurError:
        return
    assert ENCODE[kind](decoded) == edited


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(sorted(GOOD)))
def test_noise_is_refused(noise: bytes, kind: str) -> None:
    with pytest.raises(SecateurError):
        DECODE[kind](noise)


U32 = [0, 1 << 31, (1 << 32) - 1]
U64 = [0, 1 << 31, 1 << 40, (1 << 64) - 1]
BIG_DEGREES = [0, DEGREE - 1, 2 * DEGREE, 1 << 31]
# kind: (field, offset, layout, values that are wrong there). Offsets in words of the tables of docs/wire.md.
FIELDS: list[tuple[str, str, int, str, list[int]]] = [
    *((kind, "version", 4, "<H", [0, 2, 65535]) for kind in GOOD),
    *((kind, "kind", 6, "<H", [0, 5, 255, 65535]) for kind in GOOD),
    *((kind, "body length", 8, "<Q", U64) for kind in GOOD),
    ("ciphertexts", "count", HEADER, "<I", [*U32, 1, 3, 9]),
    ("ciphertexts", "degree", HEADER + 4, "<I", BIG_DEGREES),
    ("ciphertexts", "level", HEADER + 8, "<I", [0, 2, 3, *U32[1:]]),
    ("ciphertexts", "polynomials", HEADER + 12, "<I", [*U32, 1, 3, 4]),
    ("ciphertexts", "form", HEADER + 24, "<I", [1, 2, 3, *U32[1:]]),
    ("ciphertexts", "limbs", HEADER + 28, "<I", [*U32, 1, 3]),
    ("key", "element", HEADER, "<I", [1, 2, 2 * DEGREE, 2 * DEGREE + 1, *U32[1:]]),
    ("key", "level", HEADER + 4, "<I", [*U32, 2, 3]),
    ("key", "gadget", HEADER + 8, "<I", [*U32, 2]),
    ("key", "digits", HEADER + 12, "<I", [*U32, 1, 3]),
    ("key", "form", HEADER + 16, "<I", [1, 2, 3, *U32[1:]]),
    ("key", "limbs", HEADER + 20, "<I", [*U32, 2, 4]),
    ("seeded key", "seed form", HEADER + 16 + POLY + 3 * DEGREE * 8, "<I", [0, 3, *U32[1:]]),
    ("seeded key", "seed limbs", HEADER + 20 + POLY + 3 * DEGREE * 8, "<I", [*U32, 3, 5]),
    ("public key", "form", HEADER, "<I", [1, 2, 3, *U32[1:]]),
    ("public key", "limbs", HEADER + 4, "<I", [*U32, 3, 5]),
    ("public key", "seed limbs", HEADER + 4 + POLY + 4 * DEGREE * 8, "<I", [*U32, 3, 5]),
    ("key set", "count", HEADER, "<I", [*U32, 1, 3]),
    ("key set", "degree", HEADER + 4, "<I", BIG_DEGREES),
    ("key set", "element", HEADER + 8, "<I", [1, 2, 3, 5, 2 * DEGREE + 1, *U32[1:]]),
    ("key set", "level", HEADER + 12, "<I", [0, 2, 3, *U32[1:]]),
    ("key set", "length", HEADER + 16, "<Q", [*U64, len(SEEDED_KEY) - 1, len(SEEDED_KEY) + 1, len(KEY)]),
    ("key set", "record digest", HEADER + 24, "<Q", U64),
]


def _cases() -> Iterator[object]:
    for kind, field, offset, layout, values in FIELDS:
        for value in values:
            yield pytest.param(kind, offset, layout, value, id=f"{kind}-{field}-{value}")


@pytest.mark.parametrize(("kind", "offset", "layout", "value"), list(_cases()))
def test_every_count_and_length(kind: str, offset: int, layout: str, value: int) -> None:
    covered = TABLE if kind == "key set" else None
    refused(kind, resealed(GOOD[kind], lambda d: struct.pack_into(layout, d, offset, value), covered))


BAD_SCALES = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, -1.0, 5e-324, 2.0**-1, 2.0**56, 1e300]


@pytest.mark.parametrize("scale", BAD_SCALES)
def test_bad_scales(scale: float) -> None:
    edited = resealed(CIPHERTEXTS, lambda d: struct.pack_into("<d", d, HEADER + 16, scale))
    error = refused("ciphertexts", edited)
    assert isinstance(error, CiphertextMismatch) and error.reason is Reason.SCALE_MISMATCH


@pytest.mark.parametrize("excess", [0, 1, 1 << 40, -1])
@pytest.mark.parametrize(
    ("kind", "start", "row"),
    [("ciphertexts", HEADER + 32, 1), ("key", HEADER + 24, 1), ("key", HEADER + 24, 2), ("public key", HEADER + 8, 3)],
)
def test_residues_at_or_above_their_prime(kind: str, start: int, row: int, excess: int) -> None:
    primes = {"key": (*PARAMS.primes[:2], *PARAMS.special)}.get(kind, (*PARAMS.primes, *PARAMS.special))
    value = (1 << 64) - 1 if excess < 0 else primes[row] + excess
    for column in (0, 517, DEGREE - 1):
        offset = start + 8 * (row * DEGREE + column)
        error = refused(kind, resealed(GOOD[kind], lambda d, o=offset: struct.pack_into("<Q", d, o, value)))
        assert error.reason is Reason.RESIDUE_OUT_OF_RANGE


def test_a_residue_just_below_its_prime_is_accepted() -> None:
    edited = resealed(CIPHERTEXTS, lambda d: struct.pack_into("<Q", d, HEADER + 32, PARAMS.primes[0] - 1))
    assert ENCODE["ciphertexts"](DECODE["ciphertexts"](edited)) == edited


def test_transparent_ciphertexts_are_refused() -> None:
    rows = 2 * DEGREE * 8
    start = HEADER + 32 + rows + POLY
    error = refused(
        "ciphertexts", resealed(CIPHERTEXTS, lambda d: d.__setitem__(slice(start, start + rows), bytes(rows)))
    )
    assert "transparent" in error.message


def test_a_key_with_a_zero_a_is_refused() -> None:
    rows = 3 * DEGREE * 8
    start = HEADER + 16 + POLY + rows + POLY
    error = refused("key", resealed(KEY, lambda d: d.__setitem__(slice(start, start + rows), bytes(rows))))
    assert "zero" in error.message


def test_more_ciphertexts_than_allowed() -> None:
    with pytest.raises(WireError) as caught:
        wire.decode_ciphertexts(CIPHERTEXTS, PARAMS, max_count=1)
    assert caught.value.reason is Reason.LIMIT_EXCEEDED


def test_other_parameters() -> None:
    with pytest.raises(ParameterError, match="made for parameters"):
        wire.decode_ciphertexts(CIPHERTEXTS, OTHER, max_count=2)
    for decode, data in ((wire.decode_key, KEY), (wire.decode_public_key, PUBLIC)):
        with pytest.raises(KeyMismatch) as caught:
            decode(data, OTHER)
        assert caught.value.reason is Reason.KEY_PARAMETERS_DIFFER
    with pytest.raises(KeyMismatch):
        list(wire.read_key_set(io.BytesIO(KEY_SET), OTHER))


def test_an_unknown_version_says_so() -> None:
    error = refused("key", resealed(KEY, lambda d: struct.pack_into("<H", d, 4, 2)))
    assert error.reason is Reason.VERSION_UNKNOWN and "version 2, need 1" in error.message


def test_key_set_records_cannot_be_swapped_or_moved() -> None:
    """The table binds every record, also to others that are valid by themselves."""
    rows = [slice(HEADER + 8 + ROW * i, HEADER + 8 + ROW * (i + 1)) for i in range(2)]

    def swap(d: bytearray) -> None:
        d[rows[0]], d[rows[1]] = d[rows[1]], d[rows[0]]

    refused("key set", resealed(KEY_SET, swap, TABLE))

    start = HEADER + TABLE
    other = wire.encode_key(key(0, 1, True, salt=9), PARAMS)
    replaced = KEY_SET[:start] + other + KEY_SET[start + len(other) :]
    assert refused("key set", replaced).reason is Reason.DIGEST_MISMATCH

    renamed = wire.encode_key(key(7, 1, True), PARAMS)

    def rename(d: bytearray) -> None:
        d[start : start + len(renamed)] = renamed
        d[HEADER + 24 : HEADER + 56] = renamed[48:80]

    assert "another element" in refused("key set", resealed(KEY_SET, rename, TABLE)).message


def test_a_key_set_on_disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("keys") / "set"
    path.write_bytes(KEY_SET)
    assert [r.element for r in wire.read_key_set(path, PARAMS)] == [0, 3]
    with path.open("rb") as file:
        for row in wire.read_key_table(file, PARAMS):
            file.seek(row.offset)
            assert wire.decode_key(file.read(row.length), PARAMS).element == row.element


def test_a_key_set_is_bounded_by_its_file() -> None:
    """A table that promises far more than the file holds costs nothing."""
    refused("key set", resealed(KEY_SET, lambda d: struct.pack_into("<Q", d, 8, 1 << 62), TABLE))


def test_a_key_set_may_not_repeat_an_element() -> None:
    record = wire.encode_key(key(3, 0, True), PARAMS)
    row = struct.pack("<IIQ32s", 3, 0, len(record), record[48:80])
    body = struct.pack("<II", 2, DEGREE) + row + row + record + record
    data = KEY_SET[:8] + struct.pack("<Q", len(body)) + KEY_SET[16:80] + body
    assert "twice" in refused("key set", resealed(data, lambda _: None, TABLE)).message


def test_a_key_set_table_is_refused_before_its_records_are_read() -> None:
    def table_only(data: bytes) -> SecateurError:
        with pytest.raises(SecateurError) as caught:
            wire.read_key_table(io.BytesIO(data), PARAMS)
        return caught.value

    lengths = HEADER + 16, HEADER + 16 + ROW
    values = [struct.unpack_from("<Q", KEY_SET, offset)[0] for offset in lengths]

    def shift(d: bytearray) -> None:
        struct.pack_into("<Q", d, lengths[0], values[0] + 8)
        struct.pack_into("<Q", d, lengths[1], values[1] - 8)

    assert table_only(resealed(KEY_SET, shift, TABLE)).reason is Reason.SIZE_MISMATCH
    for count in (DEGREE + 1, (1 << 32) - 1, 1 << 12):
        many = resealed(KEY_SET, lambda d, n=count: struct.pack_into("<I", d, HEADER, n), TABLE)
        assert table_only(many).reason is Reason.LIMIT_EXCEEDED


def test_an_empty_key_set_is_tied_to_its_parameters_too() -> None:
    empty = io.BytesIO(write_key_set([]))
    assert list(wire.read_key_set(empty, PARAMS)) == []
    with pytest.raises(KeyMismatch):
        list(wire.read_key_set(empty, OTHER))


def test_a_seed_for_no_rows_is_not_a_c0() -> None:
    """A seed where residues must stand is refused for that, whatever number of rows it claims."""
    for limbs in (0, 1, 2):
        body = (
            struct.pack("<IIIIdII", 1, DEGREE, 0, 2, 2.0**20, 1, limbs)
            + bytes(64)
            + struct.pack("<II", 1, 1)
            + bytes(64)
        )
        data = CIPHERTEXTS[:8] + struct.pack("<Q", len(body)) + CIPHERTEXTS[16:80] + body
        assert "need residues in full" in refused("ciphertexts", resealed(data, lambda _: None)).message


def test_a_key_with_fewer_digits_than_its_level_needs() -> None:
    """Every byte accounted for, and yet one digit short."""
    digit = 2 * (POLY + 3 * DEGREE * 8)
    short = KEY[:-digit]
    edited = resealed(
        short, lambda d: (struct.pack_into("<Q", d, 8, len(short) - 80), struct.pack_into("<I", d, 92, 1))
    )
    error = refused("key", edited)
    assert error.reason is Reason.SIZE_MISMATCH and "need 2 at level 1" in error.message
