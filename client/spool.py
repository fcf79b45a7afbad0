"""A key set on disk between its making and its commitment by the server, so that an upload can be resumed.

Keys that the server is known to have are not made again: then the file has the front of the set and the new keys only, and
the set is offered as a manifest of pieces.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from he_runtime.params import CkksParams
from he_runtime.ring import KeyRequest, KeySetSpec
from he_runtime.wire import KeySetWriter, WrittenRecord
from protos.manifest import Piece, Segments, pack_manifest
from protos.native import UploadOffer

from ._files import storing, write_atomic
from .keystore import KeyEntry, key_list_digest
from .record_index import record_from_json, record_to_json

if TYPE_CHECKING:
    from he_runtime.backends.tenseal_secret import SecretKey

__all__ = ["Spool", "Stream", "spool_keys"]

Known = Mapping[KeyRequest, WrittenRecord]


@dataclass(frozen=True)
class Stream:
    """What is sent of a file, in the order in which it is sent."""

    path: Path
    segments: Segments

    @property
    def total_bytes(self) -> int:
        return self.segments.total_bytes

    def read(self, file: BinaryIO, offset: int, count: int) -> bytes:
        """`count` bytes of the stream, which are all within it, from the opened file."""
        return b"".join(_read_at(file, *place) for place in self.segments.places(offset, count))


def _read_at(file: BinaryIO, start: int, count: int) -> bytes:
    file.seek(start)
    return file.read(count)


@dataclass(frozen=True)
class Spool:
    """A key set as a file, and beside it a note of its digest and of the upload that it is part of.

    `front` and `records` are the pieces that it is offered in, `assumed` the numbers of those that are not in the file;
    without `front` it is offered as the whole that it then is. `total_bytes` are of the set.
    """

    path: Path
    key_list: str
    sha256: str
    total_bytes: int
    front: Piece | None = None
    records: tuple[WrittenRecord, ...] = ()
    assumed: frozenset[int] = frozenset()

    @property
    def _note(self) -> Path:
        return self.path.with_suffix(".json")

    def _pieces(self) -> Iterator[Piece]:
        if self.front is not None:
            yield self.front
            yield from (Piece(r.sha256, r.length) for r in self.records)

    def offer(self, params_digest: str, client_spec_digest: str) -> UploadOffer:
        about = params_digest, client_spec_digest, self.total_bytes
        if self.front is None:
            return UploadOffer(*about, self.sha256)
        manifest = pack_manifest(self._pieces())
        assumed = bytes(n in self.assumed for n in range(len(self.records) + 1)) if self.assumed else b""
        return UploadOffer(*about, hashlib.sha256(manifest).hexdigest(), manifest, assumed)

    def stream(self, missing: Sequence[int]) -> Stream | None:
        """What the server is missing; None where it names pieces in another order, twice, or that are not here."""
        if self.front is None:
            return Stream(self.path, Segments([(0, self.total_bytes)])) if not missing else None
        places, start = {}, 0
        for number, piece in enumerate(self._pieces()):
            if number not in self.assumed:
                places[number] = (start, piece.total_bytes)
                start += piece.total_bytes
        if list(missing) != sorted(set(missing)) or not places.keys() >= set(missing):
            return None
        return Stream(self.path, Segments(places[n] for n in missing))

    def upload_id(self) -> str | None:
        """The server's name of the upload under way, if there is one."""
        found = _read(self._note).get("upload_id")
        return found if isinstance(found, str) else None

    def remember_upload(self, upload_id: str | None) -> None:
        front = self.front and [self.front.sha256, self.front.total_bytes]
        records = [[n in self.assumed, record_to_json(r)] for n, r in enumerate(self.records, 1)]
        note = {"key_list": self.key_list, "sha256": self.sha256, "upload_id": upload_id}
        write_atomic(self._note, json.dumps({**note, "front": front, "records": records}).encode())

    def drop(self) -> None:
        self._note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def spool_keys(entry: KeyEntry, secret: SecretKey, keys: KeySetSpec, known: Known | None = None) -> Spool:
    """The key set of `keys` on disk: an intact earlier one whose upload was cut, or freshly made, one key in memory.

    `known` keys are not made but referred to; None for a server that takes no manifests.
    """
    path, wanted = entry.path / "pending.keys", key_list_digest(entry.params, keys)
    earlier = _earlier(path, wanted, known)
    if earlier is not None:
        return earlier
    path.with_suffix(".json").unlink(missing_ok=True)
    spool = _written(path, wanted, entry.params, secret, keys, known)
    spool.remember_upload(None)
    return spool


def _earlier(path: Path, wanted: str, known: Known | None) -> Spool | None:
    """A spool for the same keys that is as its note says, and assumes no more than what is known."""
    note = _read(path.with_suffix(".json"))
    if not path.exists() or note.get("key_list") != wanted or note.get("sha256") != _sha256(path):
        return None
    if note.get("front") is None:
        return Spool(path, wanted, note["sha256"], path.stat().st_size)
    pieces = _noted_pieces(note)
    if known is None or pieces is None:
        return None
    front, records, assumed = pieces
    usable = set(known.values())
    if any(records[n - 1] not in usable for n in assumed):
        return None
    return _described(path, wanted, note["sha256"], front, records, assumed)


def _noted_pieces(note: Mapping[str, Any]) -> tuple[Piece, list[WrittenRecord], frozenset[int]] | None:
    try:
        sha256, front_bytes = note["front"]
        noted = [(bool(is_assumed), record_from_json(value)) for is_assumed, value in note["records"]]
    except (KeyError, TypeError, ValueError):
        return None
    records = [record for _, record in noted if record is not None]
    if len(records) != len(noted):
        return None
    return Piece(sha256, front_bytes), records, frozenset(n for n, (gone, _) in enumerate(noted, 1) if gone)


def _written(
    path: Path, wanted: str, params: CkksParams, secret: SecretKey, keys: KeySetSpec, known: Known | None
) -> Spool:
    writer = _write(path, params, secret, keys, known or {})
    if known is None:
        return Spool(path, wanted, _sha256(path), path.stat().st_size)
    front = Piece(hashlib.sha256(writer.front).hexdigest(), len(writer.front))
    assumed = frozenset(n for n, request in enumerate(keys.requests, 1) if request in known)
    return _described(path, wanted, _sha256(path), front, writer.records, assumed)


def _described(
    path: Path, wanted: str, sha256: str, front: Piece, records: Sequence[WrittenRecord], assumed: frozenset[int]
) -> Spool:
    total_bytes = front.total_bytes + sum(r.length for r in records)
    return Spool(path, wanted, sha256, total_bytes, front, tuple(records), assumed)


def _write(path: Path, params: CkksParams, secret: SecretKey, keys: KeySetSpec, known: Known) -> KeySetWriter:
    fresh = secret.make_keys(KeySetSpec(tuple(r for r in keys.requests if r not in known), keys.gadget))
    try:
        with storing(path):
            path.touch(mode=0o600)
            with path.open("wb") as file, KeySetWriter(file, params, keys) as writer:
                for request in keys.requests:
                    if request in known:
                        writer.refer(known[request])
                    else:
                        writer.write(next(fresh))
    except BaseException:
        path.unlink(missing_ok=True)  # a part of a key set is of no use, and may be what fills the disk
        raise
    return writer


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(note: Path) -> dict[str, Any]:
    """The note, {} when absent or damaged: then the keys are simply made again."""
    try:
        record = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
