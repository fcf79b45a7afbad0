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
from .spool import Spool, Stream
from .transport import Calls

__all__ = ["REFUSED_FOR_GOOD", "PiecesLacking", "Progress", "Uploader"]

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
REFUSED_FOR_GOOD = frozenset(Reason) - _WORTH_KEEPING


class PiecesLacking(Exception):
    """The server has no longer what a spool assumes that it has; the numbers of these pieces."""

    def __init__(self, numbers: tuple[int, ...]) -> None:
        super().__init__(f"{len(numbers)} pieces are lacking")
        self.numbers = numbers


class Uploader:
    """Moves one spool to the server and returns the committed key set; `sent_bytes` is then what of it had to be sent."""

    def __init__(self, transport: Calls, chunk_bytes: int, progress: Progress | None = None) -> None:
        self._transport = transport
        self._chunk_bytes = chunk_size(chunk_bytes)
        self._progress = progress or (lambda done, total: None)
        self.sent_bytes = 0

    def upload(self, spool: Spool, params_digest: str, client_spec_digest: str) -> KeySetInfo:
        """Send what the server does not have yet, then commit; resumes after every break until nothing moves any more.

        The spool is dropped once the server has committed it, or has refused it for good. Raises ServerError when the
        server refuses or stays away, ServerUntrusted when its answers make no sense, PiecesLacking.
        """
        offer = spool.offer(params_digest, client_spec_digest)
        furthest, breaks, total = -1, 0, spool.total_bytes
        while True:
            try:
                found = self._locate(spool, offer)
                if isinstance(found, UploadInfo):
                    stream = _checked_stream(spool, found)
                    self.sent_bytes = total = stream.total_bytes
                    offset = _checked_offset(found.committed_offset, 0, total)
                    furthest, breaks = (offset, 0) if offset > furthest else (furthest, breaks)
                    self._send(stream, found.upload_id, offset)
                    found = self._transport.commit_upload(found.upload_id)
                self._progress(total, total)
                return _checked_key_set(found, offer, spool)
            except ServerError as error:
                breaks += 1
                # Where pieces were assumed, that may be wrong, and sending the others again would not help.
                mistaken = bool(spool.assumed) and error.reason is Reason.DIGEST_MISMATCH
                if mistaken or error.reason not in _RESUMABLE or breaks > _BREAKS:
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
            if not found.numbers or not spool.assumed.issuperset(found.numbers):
                raise ServerUntrusted(
                    "cannot upload the keys: got a list of lacking pieces that are not among the assumed"
                )
            raise PiecesLacking(found.numbers)
        spool.remember_upload(found.upload_id if isinstance(found, UploadInfo) else None)
        return found

    def _send(self, stream: Stream, upload_id: str, offset: int) -> None:
        while offset < stream.total_bytes:
            end = min(offset + _SEGMENT_BYTES, stream.total_bytes)
            committed = self._transport.upload_chunks(partial(self._chunks, stream, upload_id, offset, end))
            offset = _checked_offset(committed, offset + 1, end)

    def _chunks(self, stream: Stream, upload_id: str, offset: int, end: int) -> Iterator[keys_pb2.UploadChunkRequest]:
        with stream.path.open("rb") as file:
            while offset < end:
                self._progress(offset, stream.total_bytes)
                data = stream.read(file, offset, min(self._chunk_bytes, end - offset))
                yield keys_pb2.UploadChunkRequest(upload_id=upload_id, offset=offset, data=data)
                offset += len(data)


def chunk_size(stated: int) -> int:
    """Bytes per message for a server that states this limit (0: none stated), within what is sensible."""
    return min(max(stated, _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES) if stated > 0 else _MAX_CHUNK_BYTES


def _checked_stream(spool: Spool, found: UploadInfo) -> Stream:
    """What the server asks for, if it is part of what was offered."""
    stream = spool.stream(found.missing)
    if stream is None or found.total_bytes != stream.total_bytes:
        raise ServerUntrusted("cannot upload the keys: got a request for other bytes than the ones offered")
    return stream


def _checked_offset(offset: int, least: int, most: int) -> int:
    if not least <= offset <= most:
        raise ServerUntrusted(f"cannot upload the keys: got a committed offset {offset}, need {least} to {most}")
    return offset


def _checked_key_set(found: KeySetInfo, offer: UploadOffer, spool: Spool) -> KeySetInfo:
    """`sha256` is of the whole file, which is known here where the whole file is."""
    sha256 = found.sha256 if spool.assumed else spool.sha256
    same = (found.sha256, found.total_bytes, found.params_digest) == (sha256, offer.total_bytes, offer.params_digest)
    usable = 0 < len(found.key_set_id) <= 256 and found.key_set_id.isascii() and found.key_set_id.isprintable()
    if not (same and usable):
        raise ServerUntrusted("cannot use the uploaded keys: got the description of another key set than the one sent")
    return found
