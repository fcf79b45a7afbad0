"""A key set on the wire: what a client uploads once, as a file that neither side holds in memory whole.

Body: count u32, N u32, a table with a row per record (element u32, level u32, length u64, digest 32 bytes), then the
records back to back, each a complete key object that a store may keep by its own digest. The digest in the set's
header covers the table and so, through it, every record. All keys of a set are on one gadget, which the reader states.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from ..errors import KeyMismatch, Reason, WireError
from ..gadget import SEAL
from ..params import CkksParams
from ..ring import KeyRecord, KeySetSpec
from .header import HEADER_BYTES, Header, Kind, pack_header, read_header
from .keys import check_request, decode_key, encode_key, key_byte_size

__all__ = ["KeySetRow", "KeySetWriter", "WrittenRecord", "key_set_byte_size", "read_key_set", "read_key_table"]

_BODY = struct.Struct("<II")
_ROW = struct.Struct("<IIQ32s")
_AGAIN = "try making and sending the key set again"


@dataclass(frozen=True)
class KeySetRow:
    """Where a record lies in the file, and what it must be."""

    element: int
    level: int
    offset: int
    length: int
    digest: bytes


@dataclass(frozen=True)
class WrittenRecord:
    """A record as bytes that may lie elsewhere: what a table says of it, and the hexadecimal sha256 of all of them."""

    element: int
    level: int
    length: int
    digest: bytes
    sha256: str


def _table_bytes(count: int) -> int:
    return _BODY.size + count * _ROW.size


def key_set_byte_size(spec: KeySetSpec, params: CkksParams, seeded: bool) -> int:
    """Exact size of the whole upload object for `spec`, its a_i seeded or in full."""
    records = sum(key_byte_size(r.level, params, seeded, spec.gadget) for r in spec.requests)
    return HEADER_BYTES + _table_bytes(len(spec.requests)) + records


class KeySetWriter:
    """Writes the records of `spec`, in its order, to a seekable binary file that starts empty at its position 0.

    The header and the table are written by `close`; until then, and if anything fails, the file is not a key set. Nor is
    it one where `refer` left out records that lie elsewhere: then the set is this file's front, and the records after it
    in the order of `records`, wherever they are.
    """

    def __init__(self, file: BinaryIO, params: CkksParams, spec: KeySetSpec) -> None:
        if len({r.element for r in spec.requests}) != len(spec.requests):
            raise WireError("cannot write this key set: an element occurs twice, need each once")
        for request in spec.requests:
            check_request(request.element, request.level, params, spec.gadget)
        self._file = file
        self._params = params
        self._requests = spec.requests
        self._gadget = spec.gadget
        self.records: list[WrittenRecord] = []
        self.front = b""  # header and table, once closed
        self._start = HEADER_BYTES + _table_bytes(len(spec.requests))
        file.seek(self._start)

    def write(self, record: KeyRecord) -> int:
        """Append the next record; returns its bytes. Raises KeyMismatch when it is not the one that the spec names."""
        self._expect(record.element, record.level)
        if record.gadget != self._gadget:
            raise KeyMismatch(
                f"cannot write the key for element {record.element}: it is on gadget {record.gadget!r}, need {self._gadget!r}",
                Reason.KEY_PARAMETERS_DIFFER,
            )
        data = encode_key(record, self._params)
        self._file.write(data)
        digest, sha256 = read_header(data, Kind.KEY).digest, hashlib.sha256(data).hexdigest()
        self.records.append(WrittenRecord(record.element, record.level, len(data), digest, sha256))
        return len(data)

    def refer(self, record: WrittenRecord) -> None:
        """Leave out the next record, which was written before and lies elsewhere. Raises KeyMismatch when it is another
        than the one that the spec names, or has not the size of one.
        """
        self._expect(record.element, record.level)
        if record.length not in _lengths(record.level, self._params, self._gadget):
            raise KeyMismatch(
                f"cannot refer to a key of {record.length} bytes: none at level {record.level} on gadget "
                f"{self._gadget!r} has that size",
                Reason.SIZE_MISMATCH,
            )
        self.records.append(record)

    def _expect(self, element: int, level: int) -> None:
        expected = self._requests[len(self.records)] if len(self.records) < len(self._requests) else None
        if expected is None or (element, level) != (expected.element, expected.level):
            need = "no more" if expected is None else f"element {expected.element} at level {expected.level}"
            raise KeyMismatch(
                f"cannot write the key for element {element} at level {level}: need {need}", Reason.KEY_MISSING
            )

    def close(self) -> None:
        """Write header and table. Raises KeyMismatch while records are missing."""
        if len(self.records) != len(self._requests):
            raise KeyMismatch(f"cannot finish the key set: got {len(self.records)} records, need {len(self._requests)}")
        rows = (_ROW.pack(r.element, r.level, r.length, r.digest) for r in self.records)
        table = b"".join((_BODY.pack(len(self.records), self._params.degree), *rows))
        body_bytes = len(table) + sum(r.length for r in self.records)
        self.front = pack_header(Kind.KEY_SET, self._params, body_bytes, [table]) + table
        self._file.seek(0)
        self._file.write(self.front)
        self._file.flush()

    def __enter__(self) -> KeySetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()


def _read_exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise WireError(f"cannot read a key set: got {len(data)} bytes, need {count}; {_AGAIN}", Reason.BYTES_TRUNCATED)
    return data


def _check_length(header: Header, file_bytes: int) -> None:
    got = file_bytes - HEADER_BYTES
    if got != header.body_bytes:
        reason = Reason.BYTES_TRUNCATED if got < header.body_bytes else Reason.BYTES_MALFORMED
        raise WireError(f"cannot read a key set: got a body of {got} bytes, need {header.body_bytes}; {_AGAIN}", reason)


def _lengths(level: int, params: CkksParams, gadget: str) -> set[int]:
    """What a record at this level may take: its a_i seeded or in full."""
    return {key_byte_size(level, params, seeded, gadget) for seeded in (False, True)}


def _parse_rows(table: bytes, params: CkksParams, gadget: str) -> list[KeySetRow]:
    offset = HEADER_BYTES + len(table)
    rows: list[KeySetRow] = []
    for element, level, length, digest in _ROW.iter_unpack(table[_BODY.size :]):
        check_request(element, level, params, gadget)
        if length not in _lengths(level, params, gadget):
            raise WireError(
                f"cannot read a key set: got a key of {length} bytes, which none at level {level} on gadget {gadget!r} has; "
                f"{_AGAIN}",
                Reason.SIZE_MISMATCH,
            )
        rows.append(KeySetRow(element, level, offset, length, digest))
        offset += length
    return rows


def read_key_table(file: BinaryIO, params: CkksParams, gadget: str = SEAL) -> list[KeySetRow]:
    """The checked table of a seekable file: exact places, no element twice, and not a byte unaccounted for.

    The table does not tell the gadget: the reader states which one the plan needs. Raises WireError, or KeyMismatch when
    the set was made for other parameters.
    """
    file_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    header = read_header(file.read(HEADER_BYTES), Kind.KEY_SET)
    _check_length(header, file_bytes)
    head = _read_exactly(file, _BODY.size)
    count, degree = _BODY.unpack(head)
    if count > params.degree or _table_bytes(count) > header.body_bytes:
        raise WireError(
            f"cannot read a key set: got {count} keys, need at most {params.degree}, in as many bytes as they take; "
            "try only the keys of the client spec",
            Reason.LIMIT_EXCEEDED,
        )
    table = head + _read_exactly(file, count * _ROW.size)
    header.check_digest(table)
    header.check_params(params)
    if degree != params.degree:
        raise WireError(
            f"cannot read a key set: got N={degree}, need N={params.degree}; try keys made from the current client spec",
            Reason.SIZE_MISMATCH,
        )
    rows = _parse_rows(table, params, gadget)
    if len({r.element for r in rows}) != len(rows):
        raise WireError(f"cannot read a key set: got an element twice, need each once; {_AGAIN}")
    if _table_bytes(count) + sum(r.length for r in rows) != header.body_bytes:
        raise WireError(f"cannot read a key set: got records that do not fill it exactly; {_AGAIN}")
    return rows


def read_key_set(source: str | Path | BinaryIO, params: CkksParams, gadget: str = SEAL) -> Iterator[KeyRecord]:
    """The records of a key set, one at a time; the table is checked before the first one is read.

    `source` is a path or a seekable binary file. Raises WireError, or KeyMismatch for other parameters or another gadget.
    """
    with ExitStack() as stack:
        file = stack.enter_context(open(source, "rb")) if isinstance(source, (str, Path)) else source
        for row in read_key_table(file, params, gadget):
            file.seek(row.offset)
            data = _read_exactly(file, row.length)
            if read_header(data, Kind.KEY).digest != row.digest:
                raise WireError(
                    f"cannot read a key set: got another record than the table says; {_AGAIN}", Reason.DIGEST_MISMATCH
                )
            record = decode_key(data, params)
            if (record.element, record.level) != (row.element, row.level):
                raise WireError(
                    f"cannot read a key set: got a record for another element or level than the table says; {_AGAIN}"
                )
            if record.gadget != gadget:
                raise KeyMismatch(
                    f"cannot read a key set: got a key on gadget {record.gadget!r}, need {gadget!r}; try making it from the "
                    "current client spec",
                    Reason.KEY_PARAMETERS_DIFFER,
                )
            yield record
