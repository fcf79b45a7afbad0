"""The key store: evaluation keys by content, on disk, behind unguessable ids.

Committing an upload: the synced part file is checked against its digest, moved to blobs/<sha256> (rename, then
directory sync), and only then recorded together with its capability in one database transaction. A crash between the
two leaves a blob that nobody records, which the next start moves back to its upload, or else removes. There is no
login yet: whoever holds a key-set id may use and delete that set, and nobody else learns that it exists.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from he_runtime.errors import Reason
from protos.native import KeySetInfo, UploadInfo, UploadOffer

from ..config import KeysConfig
from ..errors import ServiceError
from ..observe.logs import event
from . import durable
from .db import KeyDb, KeySetRow, UploadRow
from .uploads import Uploads, unknown_upload

__all__ = ["KeyStore", "ReadyUpload", "StoredKeys"]

_TOKEN_BYTES = 16
_FLUSH_SECONDS = 30.0


@dataclass(frozen=True)
class StoredKeys:
    """A committed key set for inference: where its bytes lie and what they were made for."""

    path: Path = field(repr=False)
    sha256: str
    params_digest: str


@dataclass(frozen=True)
class ReadyUpload:
    """An upload whose bytes are all there and have the announced digest, not yet visible to anyone."""

    row: UploadRow
    path: Path


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _unknown_key_set() -> ServiceError:
    return ServiceError(
        "cannot find the key set: got an id that is unknown, or whose set was evicted or deleted; try uploading the keys again",
        Reason.KEY_SET_UNKNOWN,
        subject="key_set_id",
    )


class KeyStore:
    """Key sets under `directory`. Methods block on the disk; call them from a thread. Thread-safe.

    `on_step` is called with a name before each durable step; tests crash there.
    """

    def __init__(self, directory: Path, config: KeysConfig, on_step: Callable[[str], None] = lambda step: None) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._owner = durable.own(directory / "lock")  # another server's sweep would remove our files
        self._blobs = directory / "blobs"
        durable.make_directory(self._blobs)
        durable.make_directory(directory / "parts")
        self._config = config
        self._on_step = on_step
        self._lock = threading.RLock()  # one commit, eviction or deletion at a time
        self._used: dict[str, float] = {}  # recorded lazily: a sync per inference would cost more than it saves
        self._flushed = time.monotonic()
        self.db = KeyDb(directory / "keys.sqlite3")
        self._uploads = Uploads(directory / "parts", self.db, config, on_step)
        self._sweep()

    def _sweep(self) -> None:
        """Undo half-done commits, then remove what nobody records."""
        recorded = {blob.sha256 for blob in self.db.blobs()}
        for row in self.db.uploads():
            part, blob = self._uploads.path(row.id_hash), self._blob_path(row.sha256)
            if row.sha256 not in recorded and not part.exists() and blob.exists():
                durable.move(blob, part)
        missing = [sha256 for sha256 in recorded if not self._blob_path(sha256).is_file()]
        self.db.drop_blobs(missing)
        for path in self._blobs.iterdir():
            if path.name not in recorded:
                durable.remove(path)
        self._uploads.sweep()

    def close(self) -> None:
        """Make durable what can be, and let go of the directory."""
        try:
            self._uploads.close()
            self._flush()
        finally:
            self.db.close()
            os.close(self._owner)

    def _blob_path(self, sha256: str) -> Path:
        return self._blobs / sha256

    # Uploading

    def create(self, offer: UploadOffer) -> UploadInfo | KeySetInfo:
        """Start an upload, or return a new capability where these very bytes are stored for these parameters.

        Naming the digest of stored bytes is proof enough: it is as unguessable as an id, and no bytes ever leave.
        Raises LIMIT_EXCEEDED before a byte moves, KEY_PARAMETERS_DIFFER for bytes stored under other parameters.
        """
        with self._lock:
            blob = self.db.blob(offer.sha256)
            if blob is not None and blob.total_bytes == offer.total_bytes:
                _require_same_parameters(blob.params_digest, offer.params_digest)
                token = secrets.token_hex(_TOKEN_BYTES)
                self.db.add_key_set(_hash(token), offer.sha256, offer.client_spec_digest, time.time())
                self._touch(offer.sha256)
                return KeySetInfo(token, offer.sha256, offer.total_bytes, offer.params_digest, offer.client_spec_digest)
            self._require_room(offer.total_bytes)
            token = secrets.token_hex(_TOKEN_BYTES)
            about = (offer.sha256, offer.total_bytes, offer.params_digest, offer.client_spec_digest)
            self._uploads.begin(UploadRow(_hash(token), *about, offset=0, touched=time.time()))
            return UploadInfo(token, offer.total_bytes, 0)

    def _require_room(self, total_bytes: int) -> None:
        if total_bytes > self._config.budget_bytes:
            raise ServiceError(
                f"cannot store the keys: got {total_bytes} bytes, need at most {self._config.budget_bytes} on this server; "
                "try its operator",
                Reason.LIMIT_EXCEEDED,
                subject="total_bytes",
            )

    def append(self, upload_id: str, offset: int, data: bytes) -> None:
        """Add a chunk at the end of an upload; see Uploads.append."""
        self._uploads.append(_hash(upload_id), offset, data)

    def progress(self, upload_id: str) -> UploadInfo:
        """Make what was received durable, and say how much that is."""
        row, offset = self._uploads.sync(_hash(upload_id))
        return UploadInfo(upload_id, row.total_bytes, offset)

    def complete(self, upload_id: str) -> ReadyUpload:
        """The upload, checked to be whole and of the announced digest: what `commit` takes.

        Raises UPLOAD_INCOMPLETE and keeps it, or DIGEST_MISMATCH and drops it.
        """
        row, offset = self._uploads.sync(_hash(upload_id))
        if offset != row.total_bytes:
            raise ServiceError(
                f"cannot commit the upload: got {offset} bytes, need {row.total_bytes}; try resuming from there",
                Reason.UPLOAD_INCOMPLETE,
                subject="upload_id",
                metadata={"committed_offset": str(offset)},
            )
        path = self._uploads.path(row.id_hash)
        try:
            matches = durable.hash_file(path) == row.sha256
        except FileNotFoundError:
            raise unknown_upload() from None
        if not matches:
            self._uploads.drop(row.id_hash)
            raise ServiceError(
                "cannot commit the upload: got bytes that do not have the announced sha256; try uploading again",
                Reason.DIGEST_MISMATCH,
                subject="sha256",
            )
        return ReadyUpload(row, path)

    def discard(self, ready: ReadyUpload) -> None:
        """Forget a complete upload whose content turned out to be unusable."""
        self._uploads.drop(ready.row.id_hash)

    def commit(self, ready: ReadyUpload) -> KeySetInfo:
        """Make a complete upload a key set. All or nothing: see the module's description."""
        row, part = ready.row, ready.path
        token = secrets.token_hex(_TOKEN_BYTES)
        with self._lock:
            stored = self.db.blob(row.sha256)
            if stored is not None:
                _require_same_parameters(stored.params_digest, row.params_digest)
            if self.db.upload(row.id_hash) is None:  # dropped, or committed by another call, since it was complete
                raise unknown_upload()
            evicted = self._evictions(row)
            with self._uploads.released(row.id_hash):
                if stored is None:
                    self._place(part, row, _hash(token), evicted)
                else:
                    self.db.commit_upload(row, _hash(token), evicted, time.time())
                    durable.remove(part)
                self._on_step("recorded")
            self._remove_blobs(evicted)
        return KeySetInfo(token, row.sha256, row.total_bytes, row.params_digest, row.client_spec_digest)

    def _place(self, part: Path, row: UploadRow, set_hash: str, evicted: list[str]) -> None:
        """Move a part to its place and record it; what cannot be recorded is moved back."""
        blob = self._blob_path(row.sha256)
        self._on_step("before-move")
        try:
            durable.move(part, blob)
        except FileNotFoundError:
            raise unknown_upload() from None
        self._on_step("moved")
        try:
            self.db.commit_upload(row, set_hash, evicted, time.time())
        except BaseException:
            durable.move(blob, part)
            raise

    def _evictions(self, incoming: UploadRow) -> list[str]:
        """Digests of the least recently used blobs that make room for an upload's bytes within the budget."""
        self._flush()
        blobs = [b for b in self.db.blobs() if b.sha256 != incoming.sha256]
        total = sum(b.total_bytes for b in blobs) + incoming.total_bytes
        evicted = []
        for blob in blobs:
            if total <= self._config.budget_bytes:
                break
            evicted.append(blob.sha256)
            total -= blob.total_bytes
        return evicted

    def _remove_blobs(self, digests: list[str]) -> None:
        for sha256 in digests:
            self._used.pop(sha256, None)
            durable.remove(self._blob_path(sha256))

    # Using

    def info(self, key_set_id: str) -> KeySetInfo:
        row = self._row(key_set_id)
        return KeySetInfo(key_set_id, row.sha256, row.total_bytes, row.params_digest, row.client_spec_digest)

    def find(self, key_set_id: str) -> StoredKeys:
        """The keys behind an id, marked as used; KEY_SET_UNKNOWN for an unknown, evicted or foreign one."""
        row = self._row(key_set_id)
        self._touch(row.sha256)
        return StoredKeys(self._blob_path(row.sha256), row.sha256, row.params_digest)

    def delete(self, key_set_id: str) -> None:
        """Forget an id, and the bytes with the last id that led to them."""
        self._row(key_set_id)
        with self._lock:
            orphan = self.db.drop_key_set(_hash(key_set_id))
            self._on_step("deleted")
            self._remove_blobs([orphan] if orphan else [])

    def _row(self, key_set_id: str) -> KeySetRow:
        row = self.db.key_set(_hash(key_set_id))
        if row is None:
            raise _unknown_key_set()
        return row

    def _touch(self, sha256: str) -> None:
        with self._lock:
            self._used[sha256] = time.time()
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._flush()

    def _flush(self) -> None:
        """Record what was used when. Failing at that is no reason not to serve: a full disk can still be read."""
        with self._lock:
            self._flushed = time.monotonic()
            if self._used:
                try:
                    self.db.touch(self._used)
                except sqlite3.Error as error:
                    event("cannot record when keys were used", level=logging.WARNING, cause=str(error))
                else:
                    self._used.clear()


def _require_same_parameters(stored: str, offered: str) -> None:
    if stored != offered:
        raise ServiceError(
            f"cannot use these keys for parameters {offered[:12]}: got bytes that are stored for {stored[:12]}; "
            "try making keys from the current client spec",
            Reason.KEY_PARAMETERS_DIFFER,
            subject="params_digest",
        )
