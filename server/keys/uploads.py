"""Uploads under way: part files that grow at their end, with a durable offset in the database.

Bytes count as committed once the part file is synced *and* the offset is recorded. After a crash the part is cut
back to the recorded offset, so what a client is told to have sent is really there. Two connections may write one upload (a
client that reconnects before its first connection is noticed dead): whoever sends the next offset first goes on.

Parts lie on this server's disk, whatever keeps the committed sets; `place` tells whose uploads are whose in a shared database.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from he_runtime.errors import Reason
from protos.manifest import Segments

from ..errors import ServiceError
from . import durable
from .db import KeyDb, UploadRow
from .manifest import Manifest
from .part import Part
from .settings import KeysConfig

__all__ = ["Uploads", "needing_part", "unknown_upload"]

_SYNC_BYTES = 8 << 20  # at most this much is sent again after a power cut
_RETRY_SECONDS = 10.0


def unknown_upload() -> ServiceError:
    """One answer for an upload that never was, was dropped, was committed, or is somebody else's."""
    return ServiceError(
        "cannot find the upload: got an unknown or expired upload id; try creating the upload again",
        Reason.UPLOAD_UNKNOWN,
        subject="upload_id",
    )


@contextmanager
def needing_part() -> Iterator[None]:
    """Around what uses a part file that somebody may have dropped by now."""
    try:
        yield
    except FileNotFoundError:
        raise unknown_upload() from None


def _no_room(what: str) -> ServiceError:
    return ServiceError(
        f"cannot start the upload: {what}; try again later",
        Reason.LIMIT_EXCEEDED,
        subject="uploads",
        retry_after_seconds=_RETRY_SECONDS,
    )


class Uploads:
    """The part files in `directory`. Methods block on the disk; call them from a thread.

    `restore` is told of an upload whose part file is missing, and brings it back where a commit was cut short.
    """

    def __init__(
        self,
        directory: Path,
        place: str,
        db: KeyDb,
        config: KeysConfig,
        on_step: Callable[[str], None],
        restore: Callable[[UploadRow], None],
    ) -> None:
        durable.make_directory(directory)
        self._directory = directory
        self._place = place
        self._restore = restore
        self._db = db
        self._config = config
        self._on_step = on_step
        self._lock = threading.Lock()
        self._parts: dict[str, Part] = {}
        self._released: set[str] = set()

    def path(self, id_hash: str) -> Path:
        return self._directory / id_hash

    def begin(self, row: UploadRow, manifest: Manifest | None = None) -> None:
        """Reserve room for an upload and record it; LIMIT_EXCEEDED when others hold all the room."""
        with self._lock:
            for victim in self._victims(row):
                self._drop(victim.id_hash)
            self.path(row.id_hash).touch(mode=0o600)
            durable.sync_directory(self._directory)
            self._on_step("part-made")
            self._db.add_upload(row, manifest)

    def _own(self) -> list[UploadRow]:
        return [row for row in self._db.uploads() if row.place == self._place]

    def _victims(self, incoming: UploadRow) -> list[UploadRow]:
        """Uploads to drop so that another one fits: the expired, then the longest idle.

        A tenant who has too many gives up his own; where all together are too many, anybody's may have to go.
        """
        now, victims = time.time(), []
        rows = sorted(self._own(), key=self._touched)
        count, total = len(rows) + 1, sum(r.total_bytes for r in rows) + incoming.total_bytes
        own = sum(r.tenant == incoming.tenant for r in rows) + 1
        for row in rows:
            idle = now - self._touched(row)
            crowded = count > self._config.max_uploads or total > self._config.upload_budget_bytes
            over = crowded or (own > self._config.tenant_uploads and row.tenant == incoming.tenant)
            if idle > self._config.upload_ttl_seconds or (over and idle > self._config.upload_idle_seconds):
                victims.append(row)
                count, total = count - 1, total - row.total_bytes
                own -= row.tenant == incoming.tenant
        if own > self._config.tenant_uploads:
            raise _no_room(f"got {own - 1} of this tenant under way, need fewer than {self._config.tenant_uploads}")
        if count > self._config.max_uploads or total > self._config.upload_budget_bytes:
            raise _no_room(f"got {incoming.total_bytes} bytes, and other uploads under way leave less room")
        return victims

    def _touched(self, row: UploadRow) -> float:
        part = self._parts.get(row.id_hash)
        return row.touched if part is None else part.touched

    def _open(self, tenant: str, id_hash: str) -> Part:
        with self._lock:
            part = self._parts.get(id_hash)
            if part is None:
                part = self._open_file(self._recorded(tenant, id_hash))
                self._parts[id_hash] = part
            if part.row.tenant != tenant:
                raise unknown_upload()
            return part

    def _recorded(self, tenant: str, id_hash: str) -> UploadRow:
        row = None if id_hash in self._released else self._db.upload(tenant, id_hash)
        if row is None or row.place != self._place:
            raise unknown_upload()
        return row

    def _open_file(self, row: UploadRow) -> Part:
        path = self.path(row.id_hash)
        if not path.exists():
            self._restore(row)
        try:
            descriptor = os.open(path, os.O_WRONLY)
        except FileNotFoundError:
            raise unknown_upload() from None
        part = Part(row, descriptor, self._segments(row), row.received, row.received, row.touched)
        if row.received < row.sent_bytes:  # one that is complete may hold more than was sent
            part.cut_back()
        return part

    def _segments(self, row: UploadRow) -> Segments | None:
        manifest = self._db.manifest(row.id_hash) if row.held_bytes else None
        return manifest.segments() if manifest else None

    def append(self, tenant: str, id_hash: str, offset: int, data: bytes) -> None:
        """Write `data` at `offset`, which must be the end of what was received; UPLOAD_OFFSET_WRONG names that end."""
        part = self._open(tenant, id_hash)
        with part.lock:
            if part.closed:
                raise unknown_upload()
            if offset != part.size:
                raise ServiceError(
                    f"cannot take the chunk: got offset {offset}, need {part.size}; try resuming from there",
                    Reason.UPLOAD_OFFSET_WRONG,
                    subject="offset",
                    metadata={"committed_offset": str(part.size)},
                )
            if offset + len(data) > part.row.sent_bytes:
                raise ServiceError(
                    f"cannot take the chunk: got {len(data)} bytes at offset {offset}, need an end of at most "
                    f"{part.row.sent_bytes} as announced; try creating an upload of the right size",
                    Reason.SIZE_MISMATCH,
                    subject="data",
                )
            part.write(data)
            part.touched = time.time()
            if part.size - part.durable >= _SYNC_BYTES:
                self._sync(part)

    def _sync(self, part: Part) -> None:
        if part.durable == part.size:
            return
        self._on_step("before-part-sync")
        try:
            os.fsync(part.descriptor)
        except OSError:
            # The system may have dropped what it could not write, and would call the next sync a success.
            part.cut_back()
            raise
        self._on_step("part-synced")
        self._db.set_received(part.row.id_hash, part.size, part.touched)
        part.durable = part.size

    def sync(self, tenant: str, id_hash: str) -> tuple[UploadRow, int]:
        """Make everything received durable; returns the upload and its committed offset."""
        part = self._open(tenant, id_hash)
        with part.lock:
            if part.closed:
                raise unknown_upload()
            self._sync(part)
            part.touched = time.time()
            return part.row, part.durable

    @contextmanager
    def completing(self, tenant: str, id_hash: str) -> Iterator[UploadRow]:
        """The upload as it is recorded, while nobody else puts its pieces together."""
        with self._open(tenant, id_hash).completing:
            yield self._recorded(tenant, id_hash)

    def drop(self, id_hash: str) -> None:
        """Forget an upload and its bytes."""
        with self._lock:
            self._drop(id_hash)

    def drop_of(self, tenant: str, digests: Set[str]) -> None:
        """Forget a tenant's uploads of the same bytes, by digest of file or manifest, which he has just deleted, and those
        that may have copies of pieces of these by now: their clients begin again with what is still stored."""
        with self._lock:
            for row in self._own():
                filled = row.held_bytes > 0 and row.received == row.sent_bytes
                concerned = row.tenant == tenant and (filled or row.sha256 in digests)
                if concerned and row.id_hash not in self._released:
                    self._drop(row.id_hash)

    def expire(self) -> None:
        """Forget what nobody went on with; also of servers that did not come back, whose disks are theirs to sweep."""
        now = time.time()
        with self._lock:
            for row in self._db.uploads():
                if now - self._touched(row) > self._config.upload_ttl_seconds and row.id_hash not in self._released:
                    self._drop(row.id_hash)

    def _drop(self, id_hash: str) -> None:
        self._close(id_hash)
        self._db.drop_upload(id_hash)
        durable.remove(self.path(id_hash))

    @contextmanager
    def released(self, id_hash: str) -> Iterator[None]:
        """Close the part file, which belongs to the caller inside this context: nobody else can open it."""
        with self._lock:
            self._close(id_hash)
            self._released.add(id_hash)
        try:
            yield
        finally:
            with self._lock:
                self._released.discard(id_hash)

    def _close(self, id_hash: str) -> None:
        part = self._parts.pop(id_hash, None)
        if part is not None:
            with part.lock:
                part.closed = True
                os.close(part.descriptor)

    def close(self) -> None:
        """Make everything received durable and close all files."""
        with self._lock:
            for id_hash, part in list(self._parts.items()):
                with (
                    part.lock,
                    contextlib.suppress(OSError, sqlite3.Error, ServiceError),
                ):  # then the client sends these bytes again
                    self._sync(part)
                self._close(id_hash)

    def sweep(self) -> None:
        """At start: drop expired uploads and parts that do not hold what is recorded, and files nobody records."""
        now, known = time.time(), set()
        for row in self._own():
            path = self.path(row.id_hash)
            segments = self._segments(row)
            needed = segments.end(row.received) if segments else row.received
            whole = path.is_file() and path.stat().st_size >= needed
            if whole and now - row.touched <= self._config.upload_ttl_seconds:
                known.add(row.id_hash)
            else:
                self._drop(row.id_hash)
        for path in self._directory.iterdir():
            if path.name not in known:
                durable.remove(path)
