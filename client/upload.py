"""Key sets from the secret to the server: spooled to a file one key at a time, then sent in resumable chunks.

The spool lies beside the secret until the server has committed it. An upload that breaks goes on from the offset that
the server committed, whether the connection, the server or this program was restarted in between: CreateUpload with
the same digest finds it again.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from he_runtime.errors import Reason
from he_runtime.params import CkksParams
from he_runtime.ring import KeySetSpec
from he_runtime.wire import KeySetWriter
from protos.gen.secateur.v1 import keys_pb2
from protos.native import KeySetInfo, UploadInfo, UploadOffer

from ._files import write_atomic
from .errors import ServerError, ServerUntrusted
from .keystore import KeyEntry, key_list_digest
from .transport import Transport

if TYPE_CHECKING:
    from he_runtime.backends.tenseal_secret import SecretKey

__all__ = ["Progress", "Spool", "Uploader", "spool_keys"]

Progress = Callable[[int, int], None]  # bytes committed or in flight, total bytes

_READ_BYTES = 1 << 20
_MIN_CHUNK_BYTES = 1 << 10
_SEGMENT_BYTES = 32 << 20  # one stream; what is committed after it bounds what a break costs
_BREAKS = 6  # without any progress in between
_BACKOFF_SECONDS = 0.1
_RESUMABLE = frozenset(
    {
        Reason.SERVER_UNREACHABLE,
        Reason.WORKER_LOST,
        Reason.CANCELLED,
        Reason.DEADLINE_EXCEEDED,
        Reason.UPLOAD_UNKNOWN,
        Reason.UPLOAD_INCOMPLETE,
        Reason.UPLOAD_OFFSET_WRONG,
        Reason.DIGEST_MISMATCH,  # damaged on the way: the server dropped it, so it starts again
    }
)


@dataclass(frozen=True)
class Spool:
    """A key set as one file, ready to be sent."""

    path: Path
    total_bytes: int
    sha256: str


def spool_keys(entry: KeyEntry, secret: SecretKey, keys: KeySetSpec) -> Spool:
    """The key set of `keys` on disk: an intact earlier one if an upload was cut, or freshly made, one key in memory."""
    path, note = entry.path / "pending.keys", entry.path / "pending.json"
    wanted = key_list_digest(entry.params, keys)
    spool = _intact(path, note, wanted)
    if spool is not None:
        return spool
    note.unlink(missing_ok=True)
    _write(path, entry.params, secret, keys)
    spool = Spool(path, path.stat().st_size, _sha256(path))
    write_atomic(note, json.dumps({"key_list": wanted, "sha256": spool.sha256}).encode())
    return spool


def drop_spool(entry: KeyEntry) -> None:
    for name in ("pending.json", "pending.keys"):
        (entry.path / name).unlink(missing_ok=True)


def _intact(path: Path, note: Path, wanted: str) -> Spool | None:
    try:
        record = json.loads(note.read_bytes())
        if record["key_list"] != wanted or record["sha256"] != _sha256(path):
            return None
        return Spool(path, path.stat().st_size, record["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, params: CkksParams, secret: SecretKey, keys: KeySetSpec) -> None:
    with path.open("wb") as file:
        path.chmod(0o600)
        writer = KeySetWriter(file, params, keys)
        for record in secret.make_keys(keys):
            writer.write(record)
        writer.close()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Uploader:
    """Moves one spool to the server and returns the committed key set."""

    def __init__(self, transport: Transport, chunk_bytes: int, progress: Progress | None = None) -> None:
        self._transport = transport
        self._chunk_bytes = chunk_size(chunk_bytes)
        self._progress = progress or (lambda done, total: None)

    def upload(self, spool: Spool, params_digest: str, client_spec_digest: str) -> KeySetInfo:
        """Create, send, commit; resumes after every break until nothing moves any more.

        Raises ServerError when the server refuses or stays away, ServerUntrusted when its answers make no sense.
        """
        offer = UploadOffer(params_digest, client_spec_digest, spool.total_bytes, spool.sha256)
        furthest, breaks = -1, 0
        while True:
            try:
                found = self._transport.create_upload(offer)
                if isinstance(found, UploadInfo):
                    offset = _checked_offset(found.committed_offset, 0, spool.total_bytes)
                    furthest, breaks = (offset, 0) if offset > furthest else (furthest, breaks)
                    self._send(spool, found.upload_id, offset)
                    found = self._transport.commit_upload(found.upload_id)
                self._progress(spool.total_bytes, spool.total_bytes)
                return _checked_key_set(found, offer)
            except ServerError as error:
                breaks += 1
                if error.reason not in _RESUMABLE or breaks > _BREAKS:
                    raise
                time.sleep(_BACKOFF_SECONDS * 2 ** (breaks - 1) * random.uniform(0.5, 1.5))

    def _send(self, spool: Spool, upload_id: str, offset: int) -> None:
        while offset < spool.total_bytes:
            end = min(offset + _SEGMENT_BYTES, spool.total_bytes)
            committed = self._transport.upload_chunks(self._chunks(spool, upload_id, offset, end))
            offset = _checked_offset(committed, offset + 1, end)

    def _chunks(self, spool: Spool, upload_id: str, offset: int, end: int) -> Iterator[keys_pb2.UploadChunkRequest]:
        with spool.path.open("rb") as file:
            file.seek(offset)
            while offset < end:
                self._progress(offset, spool.total_bytes)
                data = file.read(min(self._chunk_bytes, end - offset))
                yield keys_pb2.UploadChunkRequest(upload_id=upload_id, offset=offset, data=data)
                offset += len(data)


def chunk_size(stated: int) -> int:
    """Bytes per message for a server that states this limit (0: none stated), within what is sensible."""
    return min(max(stated, _MIN_CHUNK_BYTES), _READ_BYTES) if stated > 0 else _READ_BYTES


def _checked_offset(offset: int, least: int, most: int) -> int:
    if not least <= offset <= most:
        raise ServerUntrusted(f"cannot upload keys: the server committed offset {offset}, need {least} to {most}")
    return offset


def _checked_key_set(found: KeySetInfo, offer: UploadOffer) -> KeySetInfo:
    same = (found.sha256, found.total_bytes, found.params_digest) == (
        offer.sha256,
        offer.total_bytes,
        offer.params_digest,
    )
    usable = 0 < len(found.key_set_id) <= 256 and found.key_set_id.isascii() and found.key_set_id.isprintable()
    if not (same and usable):
        raise ServerUntrusted("cannot use the uploaded keys: the server describes another key set than the one sent")
    return found
