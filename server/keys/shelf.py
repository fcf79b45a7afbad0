"""Committed key sets: found, listed, touched, expired, evicted and deleted, for the tenant they belong to."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from he_runtime.errors import Reason
from protos.native import KeySetInfo, KeySetListing

from ..errors import ServiceError
from ..identity.notes import note
from ..identity.tenant import ANONYMOUS, current_caller
from ..observe.logs import event
from .blobs import Blobs, blob_name
from .db import BlobRow, KeyDb, KeySetRow
from .settings import KeysConfig

__all__ = ["Shelf", "StoredKeys", "hash_token", "new_token"]

_TOKEN_BYTES = 16
_HANDLE = re.compile(r"[0-9a-f]{64}")
_MAX_PAGE = 1000
_PAGE = 100
OUTAGES = (OSError, sqlite3.Error, ServiceError)  # what a disk, a database or an object store may answer with


@dataclass(frozen=True)
class StoredKeys:
    """A committed key set for inference: where its bytes lie and what they were made for.

    `name` is of these bytes and their tenant: workers cache by it, so that nobody can time what another has loaded.
    """

    path: Path = field(repr=False)
    sha256: str
    params_digest: str
    name: str


def new_token() -> str:
    return secrets.token_hex(_TOKEN_BYTES)


def hash_token(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def unknown_key_set() -> ServiceError:
    """One answer for an id that never was, and one whose set expired, was evicted or deleted, or is another tenant's."""
    return ServiceError(
        "cannot find the key set: got an id that is unknown, or whose set was evicted or deleted; try uploading the keys again",
        Reason.KEY_SET_UNKNOWN,
        subject="key_set_id",
    )


class Shelf:
    """The committed sets of all tenants; `lock` is held while blobs and their records change together."""

    def __init__(
        self, db: KeyDb, blobs: Blobs, config: KeysConfig, lock: threading.RLock, on_step: Callable[[str], None]
    ) -> None:
        self._db = db
        self._blobs = blobs
        self._config = config
        self._lock = lock
        self._on_step = on_step
        self.on_gone: Callable[[str], object] = lambda name: None  # is told of bytes that no id leads to any more
        self._used: dict[str, float] = {}  # recorded lazily: a sync per inference would cost more than it saves

    # Finding

    def find(self, key_set_id: str) -> StoredKeys:
        """The keys behind an id of the caller's tenant, marked as used; KEY_SET_UNKNOWN for any other."""
        row = self._row(key_set_id)
        name = blob_name(row.tenant, row.sha256)
        try:
            path = self._blobs.local(name, row.sha256)
        except FileNotFoundError:
            self.forget([(row.tenant, row.sha256)])
            raise unknown_key_set() from None
        self._used[row.id_hash] = time.time()
        return StoredKeys(path, row.sha256, row.params_digest, name)

    def info(self, key_set_id: str, handle: str = "") -> KeySetInfo:
        """What is known about a set, without marking it as used."""
        return self._describe(self._row(key_set_id, handle), key_set_id)

    def touch(self, key_set_id: str, handle: str = "") -> KeySetInfo:
        """Begin the time to live of a set anew, durably."""
        row = self._row(key_set_id, handle)
        self._used[row.id_hash] = now = time.time()
        self._db.touch({row.id_hash: now})
        return self._describe(row, key_set_id)

    def listing(self, page_size: int, page_token: str) -> KeySetListing:
        """A page of the caller's own sets, by handle: ids are not stored and cannot be listed.

        PERMISSION_DENIED for callers without identity, who would see each other's.
        """
        tenant = current_caller().tenant
        if tenant == ANONYMOUS.tenant:
            raise ServiceError(
                "cannot list key sets: got a caller without identity, need a credential that names a tenant; "
                "try the ids that you hold",
                Reason.PERMISSION_DENIED,
                subject="tenant",
            )
        if page_token and not _HANDLE.fullmatch(page_token):
            raise ServiceError(
                "cannot list key sets: got a page_token of another kind, need one that a listing ended with; try none",
                Reason.BYTES_MALFORMED,
                subject="page_token",
            )
        count = min(page_size or _PAGE, _MAX_PAGE)
        rows = self._db.key_sets(tenant, page_token, count + 1)
        page = [row for row in rows[:count] if not self._is_expired(row)]
        following = rows[count - 1].id_hash if len(rows) > count else ""
        return KeySetListing(tuple(self._describe(row) for row in page), following)

    def _row(self, key_set_id: str, handle: str = "") -> KeySetRow:
        """By id, or by the handle that listings show, which serves only tenants with an identity."""
        tenant = current_caller().tenant
        by_handle = not key_set_id and tenant != ANONYMOUS.tenant and _HANDLE.fullmatch(handle)
        row = self._db.key_set(tenant, handle if by_handle else hash_token(key_set_id))
        if row is None or self._is_expired(row):
            raise unknown_key_set()
        note(key_set=row.sha256[:12])
        return row

    def _last_used(self, row: KeySetRow) -> float:
        return max(row.last_used, self._used.get(row.id_hash, 0.0))

    def _is_expired(self, row: KeySetRow) -> bool:
        return self._last_used(row) + self._config.ttl_seconds < time.time()

    def _describe(self, row: KeySetRow, key_set_id: str = "") -> KeySetInfo:
        used = self._last_used(row)
        return KeySetInfo(
            key_set_id,
            row.sha256,
            row.total_bytes,
            row.params_digest,
            row.client_spec_digest,
            handle=row.id_hash,
            created_unix_ms=round(row.created * 1e3),
            last_used_unix_ms=round(used * 1e3),
            expires_unix_ms=round((used + self._config.ttl_seconds) * 1e3),
            resident=self._blobs.is_local(blob_name(row.tenant, row.sha256)),
        )

    # Removing

    def delete(self, key_set_id: str, handle: str = "") -> tuple[str, set[str]] | None:
        """Forget an id at once, and the bytes with the last id that led to them; returns the tenant of those, and the
        digests that uploads of the same have.

        STORE_UNAVAILABLE where the object store does not answer: the set is of no more use, its bytes go once it does.
        """
        row = self._row(key_set_id, handle)
        with self._lock:
            gone = self._db.drop_key_set(row.tenant, row.id_hash)
            self._used.pop(row.id_hash, None)
            self._on_step("deleted")
            if gone is not None:
                try:
                    self._blobs.delete(blob_name(*gone))
                finally:
                    self.on_gone(blob_name(*gone))
            return None if gone is None else (row.tenant, {row.sha256, row.manifest} - {""})

    def forget(self, gone: list[tuple[str, str]]) -> None:
        """Drop blobs and every id that leads to them."""
        with self._lock:
            self._db.drop_blobs(gone)
            self.remove(gone)

    def remove(self, gone: Iterable[tuple[str, str]]) -> None:
        """Delete the bytes of blobs that are recorded no more. What cannot be deleted now is swept later."""
        for tenant, sha256 in gone:
            try:
                self._blobs.delete(blob_name(tenant, sha256))
            except OUTAGES as error:
                event("cannot delete keys", level=logging.WARNING, cause=type(error).__name__)
            self.on_gone(blob_name(tenant, sha256))

    def evictions(self, tenant: str, sha256: str, total_bytes: int) -> list[tuple[str, str]]:
        """The least recently used blobs that make room for an upload: of its tenant, then of all."""
        self.flush()
        rows = [b for b in self._db.blobs() if b.at != (tenant, sha256)]
        own = _over([b for b in rows if b.tenant == tenant], total_bytes, self._config.tenant_budget_bytes)
        rest = [b for b in rows if b.at not in own]
        return own + _over(rest, total_bytes, self._config.budget_bytes)

    def expire(self) -> None:
        """Delete sets that were not used for their time to live."""
        with self._lock:
            self.flush()
            self.remove(self._db.expire(time.time() - self._config.ttl_seconds))

    def flush(self) -> None:
        """Record what was used when. Failing at that is no reason not to serve: a full disk can still be read."""
        used = dict(self._used)
        if used:
            try:
                self._db.touch(used)
            except OUTAGES as error:
                event("cannot record when keys were used", level=logging.WARNING, cause=str(error))
            else:
                for set_hash, at in used.items():  # look-ups go on meanwhile, and add to it
                    if self._used.get(set_hash) == at:
                        self._used.pop(set_hash, None)

    def sweep(self) -> None:
        """Forget records without bytes, and remove bytes that neither a record nor an upload under way names.

        Names are listed before records are read: whatever is stored in between has one.
        """
        names = set(self._blobs.names())
        with self._lock:
            recorded = {blob_name(*b.at): b.at for b in self._db.blobs()}
            under_way = {blob_name(u.tenant, u.sha256) for u in self._db.uploads()}
            lost = [at for name, at in recorded.items() if name not in names and not self._blobs.exists(name)]
            self._db.drop_blobs(lost)
            for name in names - set(recorded) - under_way:
                self._blobs.delete(name)


def _over(rows: list[BlobRow], incoming: int, budget: int) -> list[tuple[str, str]]:
    """Those from the front of `rows` that must go so that the rest and `incoming` bytes are within a budget."""
    total, gone = sum(row.total_bytes for row in rows) + incoming, []
    for row in rows:
        if total <= budget:
            break
        gone.append(row.at)
        total -= row.total_bytes
    return gone
