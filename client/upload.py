"""Key sets to the server in resumable chunks.

An upload that breaks goes on from the offset that the server committed, whether the connection, the server or this
program was restarted in between: the spool remembers the upload.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from functools import partial

from he_runtime.errors import Reason
from protos.gen.secateur.v1 import keys_pb2
from protos.native import KeySetInfo, MissingPieces, UploadInfo, UploadOffer

from .errors import ServerError, ServerUntrusted
from .spool import Spool
from .transport import Calls

__all__ = ["Progress", "Uploader"]

Progress = Callable[[int, int], None]  # bytes committed or in flight, total bytes

_MAX_CHUNK_BYTES = 256 << 10  # what a break costs at most; larger ones are hardly faster
_MIN_CHUNK_BYTES = 1 << 10
_SEGMENT_BYTES = 8 << 20  # one stream with one deadline
_BREAKS = 12  # without any progress in between: half a minute, so that an outage of the server's database is survived
_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 5.0
_RESUMABLE = frozenset(
    {
        Reason.SERVER_UNREACHABLE,
        Reason.STORE_UNAVAILABLE,
        Reason.WORKER_LOST,
        Reason.CANCELLED,
        Reason.UPLOAD_UNKNOWN,
        Reason.UPLOAD_INCOMPLETE,
        Reason.UPLOAD_OFFSET_WRONG,
        Reason.DIGEST_MISMATCH,  # damaged on the way: the server dropped it, so it starts again
    }
)

# The same bytes may be accepted later; any other refusal is of these keys, and the next attempt makes new ones.
_WORTH_KEEPING = _RESUMABLE | {
    Reason.LIMIT_EXCEEDED,
    Reason.SERVER_BUSY,
    Reason.DEADLINE_EXCEEDED,
    Reason.INTERNAL,
    Reason.UNAUTHENTICATED,
    Reason.PERMISSION_DENIED,
}


class Uploader:
    """Moves one spool to the server and returns the committed key set."""

    def __init__(self, transport: Calls, chunk_bytes: int, progress: Progress | None = None) -> None:
        self._transport = transport
        self._chunk_bytes = chunk_size(chunk_bytes)
        self._progress = progress or (lambda done, total: None)

    def upload(self, spool: Spool, params_digest: str, client_spec_digest: str) -> KeySetInfo:
        """Send what the server does not have yet, then commit; resumes after every break until nothing moves any more.

        The spool is dropped once the server has committed it, or has refused it for good. Raises ServerError when the
        server refuses or stays away, ServerUntrusted when its answers make no sense.
        """
        offer = UploadOffer(params_digest, client_spec_digest, spool.total_bytes, spool.sha256)
        furthest, breaks = -1, 0
        while True:
            try:
                found = self._locate(spool, offer)
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
                    if error.reason not in _WORTH_KEEPING:
                        spool.drop()
                    raise
                time.sleep(min(_BACKOFF_SECONDS * 2 ** (breaks - 1), _MAX_BACKOFF_SECONDS) * random.uniform(0.5, 1.5))

    def _locate(self, spool: Spool, offer: UploadOffer) -> UploadInfo | KeySetInfo:
        """The upload that this spool is part of, begun if need be, or the key set if the server has it already."""
        upload_id = spool.upload_id()
        if upload_id is not None:
            try:
                return self._transport.get_upload(upload_id)
            except ServerError as error:
                if error.reason is not Reason.UPLOAD_UNKNOWN:
                    raise
        found = self._transport.create_upload(offer)
        if isinstance(found, MissingPieces):
            raise ServerUntrusted("cannot upload the keys: got a list of missing pieces, and offered none")
        spool.remember_upload(found.upload_id if isinstance(found, UploadInfo) else None)
        return found

    def _send(self, spool: Spool, upload_id: str, offset: int) -> None:
        while offset < spool.total_bytes:
            end = min(offset + _SEGMENT_BYTES, spool.total_bytes)
            committed = self._transport.upload_chunks(partial(self._chunks, spool, upload_id, offset, end))
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
    return min(max(stated, _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES) if stated > 0 else _MAX_CHUNK_BYTES


def _checked_offset(offset: int, least: int, most: int) -> int:
    if not least <= offset <= most:
        raise ServerUntrusted(f"cannot upload the keys: got a committed offset {offset}, need {least} to {most}")
    return offset


def _checked_key_set(found: KeySetInfo, offer: UploadOffer) -> KeySetInfo:
    same = (found.sha256, found.total_bytes, found.params_digest) == (
        offer.sha256,
        offer.total_bytes,
        offer.params_digest,
    )
    usable = 0 < len(found.key_set_id) <= 256 and found.key_set_id.isascii() and found.key_set_id.isprintable()
    if not (same and usable):
        raise ServerUntrusted("cannot use the uploaded keys: got the description of another key set than the one sent")
    return found
