"""Key sets that are refused when they are committed, and good ones where they do not belong.

A set has the header of 80 bytes, count and N, a table (element, level, length and digest of each record), and the records,
each an object with a header of its own: docs/wire.md. What is edited is sealed again up to the header of the set, as its
sender would.
"""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from he_runtime.ring import KeyRecord, KeySetSpec, SeededPoly
from he_runtime.wire import (
    HEADER_BYTES,
    encode_ciphertexts,
    encode_key,
    encode_public_key,
    expand_seed,
    read_key_set,
    read_key_table,
)
from protos.gen.secateur.v1 import keys_pb2
from tests.hostile.case import ACCEPTED, HUGE, U32, U64, Case, Group, nth, refusal
from tests.hostile.ciphertexts import Edit, header_edits
from tests.hostile.sides import Side, key_set
from tests.hostile.world import Outcome, World
from tests.wire.arrays import resealed

__all__ = ["KEY_SETS"]

_ROW = struct.Struct("<IIQ32s")
_FIRST = HEADER_BYTES + 8


def _table(data: bytes) -> int:
    """Bytes of the body that the set's digest covers."""
    return 8 + _ROW.size * int(struct.unpack_from("<I", data, HEADER_BYTES)[0])


def _sealed(data: bytes, edit: Callable[[bytearray], object]) -> bytes:
    return resealed(data, edit, _table(data))


def _with_record(side: Side, index: int, edit: Callable[[bytearray], object]) -> bytes:
    """The set with one record edited, and every digest made right again."""
    row = read_key_table(io.BytesIO(side.key_file), side.spec.params)[index]
    record = resealed(side.key_file[row.offset : row.offset + row.length], edit)

    def put(data: bytearray) -> None:
        data[row.offset : row.offset + row.length] = record
        _ROW.pack_into(data, _FIRST + _ROW.size * index, row.element, row.level, row.length, record[48:80])

    return _sealed(side.key_file, put)


def _refused(name: str, reason: str, data: bytes, model: str = "tiny") -> Case:
    return Case.of(name, refusal(reason), lambda world: world.upload(data, model))


def _cut(rng: random.Random, n: int, world: World) -> Case:
    data = world.sides["tiny"].key_file
    first = _FIRST + 5 * _ROW.size
    fields = [4, 8, 16, 48, 80, 84, _FIRST, _FIRST + _ROW.size, first, first + 80, first + 96, first + 104, len(data)]
    cuts = sorted({at + near for at in fields for near in (-1, 0, 1)} & {*range(1, len(data))})
    at = cuts[n] if n < len(cuts) else rng.randrange(1, len(data))
    if n % 2 and at > first:  # the header then says that this is all
        sealed = _sealed(data[:at], lambda d: struct.pack_into("<Q", d, 8, at - HEADER_BYTES))
        return _refused(f"cut to {at} bytes and sealed", "BYTES_MALFORMED", sealed)
    return _refused(f"cut to {at} bytes", "BYTES_TRUNCATED", data[:at])


def _set_edits(side: Side) -> list[Edit]:
    body, degree, length = len(side.key_file) - HEADER_BYTES, side.spec.params.degree, _FIRST + 8
    record = struct.unpack_from("<Q", side.key_file, length)[0]
    in_full = len(_in_full(side, 0))
    return [
        *header_edits(body, (1, 2, 3)),
        *(("count", 80, "<I", v, "LIMIT_EXCEEDED") for v in (degree + 1, 131_072, *U32[1:])),
        *(("N", 84, "<I", v, "SIZE_MISMATCH") for v in (*U32, 1, 2 * degree, 131_072)),
        *(("element", _FIRST, "<I", v, "BYTES_MALFORMED") for v in (1, 2, 3, 5, 2 * degree, 2 * degree + 1, *U32[1:])),
        *(("level", _FIRST + 4, "<I", v, "LEVEL_MISMATCH") for v in (side.spec.params.max_level + 1, 64, *U32[1:])),
        ("level", _FIRST + 4, "<I", 0, "SIZE_MISMATCH"),
        *(("length", length, "<Q", v, "SIZE_MISMATCH") for v in (*U64, record - 1, record + 1)),
        ("length", length, "<Q", in_full, "BYTES_MALFORMED"),
        *(("digest", _FIRST + 16, "<Q", v, "DIGEST_MISMATCH") for v in U64),
        *(("parameters", 16, "<Q", v, "KEY_PARAMETERS_DIFFER") for v in U64),
    ]


def _set_field(rng: random.Random, n: int, world: World) -> Case:
    side = world.sides["tiny"]
    field, offset, layout, value, reason = nth(_set_edits(side), n)
    covered = _table(side.key_file)
    data = resealed(side.key_file, lambda d: struct.pack_into(layout, d, offset, value), covered)
    return _refused(f"{field} of {value}", reason, data)


def _record_edits(side: Side) -> list[Edit]:
    """Fields of one record's body. Each of its two digits: b in full, then a as a seed."""
    params = side.spec.params
    rows, degree = params.max_level + 1 + len(params.special), params.degree
    body, polynomial = HEADER_BYTES + 16, 8 + 8 * rows * degree
    seed = body + polynomial
    last = seed + (8 + 64) + polynomial
    return [
        *(("element", 80, "<I", v, "BYTES_MALFORMED") for v in (1, 2, 7, 2 * degree + 1, *U32[1:])),
        *(("level", 84, "<I", v, "LEVEL_MISMATCH") for v in (params.max_level + 1, *U32[1:])),
        ("level", 84, "<I", 0, "SIZE_MISMATCH"),
        *(("gadget", 88, "<H", v, "VERSION_UNKNOWN") for v in (0, 3, 65535)),
        *(("primes of a digit", 90, "<H", v, "VERSION_UNKNOWN") for v in (1, 2, 65535)),
        ("hybrid gadget", 88, "<I", 2 | 1 << 16, "KEY_PARAMETERS_DIFFER"),
        *(("digits", 92, "<I", v, "SIZE_MISMATCH") for v in (*U32, 1, 3)),
        *(("form of b", body, "<I", v, "BYTES_MALFORMED") for v in (1, 2, 3, *U32[1:])),
        *(("rows of b", body + 4, "<I", v, "SIZE_MISMATCH") for v in (*U32, 1, rows + 1)),
        *(("form of a", seed, "<I", v, "BYTES_MALFORMED") for v in (3, *U32[1:])),
        *(("rows of the seed", seed + 4, "<I", v, "SIZE_MISMATCH") for v in (*U32, 1, rows + 1)),
        ("form of the last a", last, "<I", 0, "BYTES_TRUNCATED"),  # a polynomial is announced where a seed is
        *(("length", 8, "<Q", v, "BYTES_TRUNCATED") for v in HUGE),
    ]


def _record_field(rng: random.Random, n: int, world: World) -> Case:
    side = world.sides["tiny"]
    edits = _record_edits(side)
    field, offset, layout, value, reason = nth(edits, n)
    index = rng.randrange(len(side.spec.keys.requests))
    data = _with_record(side, index, lambda d: struct.pack_into(layout, d, offset, value))
    return _refused(f"{field} of {value} in record {index}", reason, data)


def _residue(rng: random.Random, n: int, world: World) -> Case:
    side = world.sides["tiny"]
    params = side.spec.params
    primes = (*params.primes, *params.special)
    row, column = n % len(primes), rng.randrange(params.degree)
    value = rng.choice((primes[row], primes[row] + 1, *HUGE[2:]))
    index = rng.randrange(len(side.spec.keys.requests))
    at = HEADER_BYTES + 24 + 8 * (row * params.degree + column)
    data = _with_record(side, index, lambda d: struct.pack_into("<Q", d, at, value))
    return _refused(f"residue {value} in row {row} of record {index}", "RESIDUE_OUT_OF_RANGE", data)


def _flipped(rng: random.Random, n: int, world: World) -> Case:
    """A bit of a row's digest, or of a record's body."""
    data = bytearray(world.sides["tiny"].key_file)
    first = _FIRST + 5 * _ROW.size + HEADER_BYTES
    at = rng.randrange(first, first + 90_000) if n % 2 else _FIRST + 16 + rng.randrange(32)
    data[at] ^= 1 << rng.randrange(8)
    return _refused(f"a bit of byte {at} flipped", "DIGEST_MISMATCH", bytes(data))


def _records(side: Side) -> list[KeyRecord]:
    return list(read_key_set(io.BytesIO(side.key_file), side.spec.params, side.spec.keys.gadget))


def _expanded(side: Side, record: KeyRecord, zero: bool = False) -> KeyRecord:
    """The record with its a_i in full, or zero, as only whoever wants to publish the b_i would have them."""
    params = side.spec.params
    rows = [*range(record.level + 1), *range(len(params.primes), len(params.primes) + len(params.special))]
    digits = []
    for b, a in record.digits:
        assert isinstance(a, SeededPoly)
        full = expand_seed(a, (*params.primes, *params.special), params.degree)[rows]
        digits.append((b, np.zeros_like(full) if zero else full))
    return replace(record, digits=tuple(digits))


def _in_full(side: Side, index: int) -> bytes:
    return encode_key(_expanded(side, _records(side)[index]), side.spec.params)


def _assembled(side: Side, records: list[bytes], rows: list[KeyRecord]) -> bytes:
    """A set of these records under a table that says that they are `rows`."""
    named = zip(rows, records, strict=True)
    table = b"".join(_ROW.pack(r.element, r.level, len(d), d[48:80]) for r, d in named)
    body = struct.pack("<II", len(rows), side.spec.params.degree) + table + b"".join(records)
    data = side.key_file[:8] + struct.pack("<Q", len(body)) + side.key_file[16:80] + body
    return _sealed(data, lambda _: None)


def _put_together(rng: random.Random, n: int, world: World) -> Case:
    """Whole and well made sets that are not the keys the plan needs."""
    tiny, other, narrow = (world.sides[name] for name in ("tiny", "other", "narrow"))
    requests = tiny.spec.keys.requests
    lost = rng.randrange(len(requests))

    def short(index: int) -> KeySetSpec:
        return KeySetSpec(tuple(replace(r, level=0) if i == index else r for i, r in enumerate(requests)))

    def other_rows(change: Callable[[list[KeyRecord]], list[KeyRecord]]) -> bytes:
        records = _records(other)
        return _assembled(other, [encode_key(r, other.spec.params) for r in records], change(records))

    def zero_a() -> bytes:
        data = bytearray(_in_full(other, 0))
        half = 8 * 2 * other.spec.params.degree
        sealed = resealed(bytes(data), lambda d: d.__setitem__(slice(len(d) - half, len(d)), bytes(half)))
        records = _records(other)
        return _assembled(other, [sealed, *(encode_key(r, other.spec.params) for r in records[1:])], records)

    def repeated() -> bytes:
        first = _records(other)[0]
        return _assembled(other, [encode_key(first, other.spec.params)] * 2, [first, first])

    fewer = KeySetSpec(tuple(r for i, r in enumerate(requests) if i != lost))
    made: list[tuple[str, str, str, Callable[[], bytes]]] = [
        (f"without record {lost}", "tiny", "KEY_MISSING", lambda: key_set(tiny.secret, fewer)),
        ("without any record", "tiny", "KEY_MISSING", lambda: key_set(tiny.secret, KeySetSpec(()))),
        (f"record {lost} of a level too low", "tiny", "KEY_MISSING", lambda: key_set(tiny.secret, short(lost))),
        ("a smaller model's keys", "other", "KEY_MISSING", lambda: key_set(narrow.secret, narrow.spec.keys)),
        ("a foreign model's keys", "tiny", "KEY_PARAMETERS_DIFFER", lambda: other.key_file),
        ("rows exchanged", "other", "DIGEST_MISMATCH", lambda: _exchanged(other)),
        ("elements exchanged", "other", "BYTES_MALFORMED", lambda: other_rows(lambda r: r[::-1])),
        ("a record twice", "other", "BYTES_MALFORMED", repeated),
        ("an a_i of zero", "other", "BYTES_MALFORMED", zero_a),
        ("bytes left over", "other", "BYTES_MALFORMED", lambda: other.key_file + b"\0"),
        ("ciphertexts", "tiny", "BYTES_MALFORMED", lambda: tiny.request),
        ("one key", "tiny", "BYTES_MALFORMED", lambda: encode_key(_records(tiny)[0], tiny.spec.params)),
        ("a public key", "tiny", "BYTES_MALFORMED", lambda: _public(tiny)),
        ("no ciphertext", "tiny", "BYTES_MALFORMED", lambda: encode_ciphertexts([], tiny.spec.params)),
        ("random bytes", "tiny", "BYTES_MALFORMED", lambda: b"\0" + rng.randbytes(rng.randrange(80, 9000))),
        ("zeros", "tiny", "BYTES_MALFORMED", lambda: bytes(rng.randrange(80, 900_000))),
    ]
    name, model, reason, make = nth(made, n)
    return _refused(name, reason, make(), model)


def _exchanged(side: Side) -> bytes:
    rows = [slice(_FIRST + _ROW.size * i, _FIRST + _ROW.size * (i + 1)) for i in range(2)]
    first, second = (side.key_file[row] for row in rows)
    return _sealed(side.key_file, lambda d: d.__setitem__(slice(rows[0].start, rows[1].stop), second + first))


def _public(side: Side) -> bytes:
    return encode_public_key(side.secret.public_key(), side.spec.params)


def _accepted(rng: random.Random, n: int, world: World) -> Case:
    """Keys whose a_i are not seeds, and fresh keys: stored, used, and deleted again."""
    side = world.sides["other"]

    def play(world: World) -> Outcome:
        records = _records(side) if n % 2 else list(side.secret.make_keys(side.spec.keys))
        in_full = [_expanded(side, r) for r in records] if n % 2 else records
        stored = world.upload(_assembled(side, [encode_key(r, side.spec.params) for r in in_full], in_full), "other")
        if stored.code != "OK":
            return stored
        key_set_id = keys_pb2.CommitUploadResponse.FromString(stored.reply).key_set.key_set_id
        request = world.infer_request(side.request, "other", key_set_id=key_set_id)
        used = world.call("InferenceService/Infer", request.SerializeToString())
        delete = keys_pb2.DeleteKeySetRequest(key_set_id=key_set_id)
        deleted = world.call("KeyService/DeleteKeySet", delete.SerializeToString())
        return used if used.code != "OK" else deleted

    return Case.of("in full" if n % 2 else "fresh", ACCEPTED, play)


KEY_SETS: dict[str, Group] = {
    "key sets cut": _cut,
    "key sets: header and table": _set_field,
    "key sets: records": _record_field,
    "key sets: residues": _residue,
    "key sets: a bit flipped": _flipped,
    "key sets: missing, short, twice, foreign": _put_together,
    "key sets: good": _accepted,
}
