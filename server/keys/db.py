"""Metadata of the key store: SQLite with WAL, synchronous=FULL and STRICT tables.

Ids that are capabilities appear only as sha256 hashes, so a copy of the database opens nothing. Every method is one
transaction; the file operations around it are the key store's business.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError

__all__ = ["BlobRow", "KeyDb", "KeySetRow", "UploadRow"]

SCHEMA_VERSION = 1
_LOCKED_SECONDS = 2.0  # for another program, such as a backup, to let go of the database
_MAX_SETS_PER_BLOB = 64  # the same bytes offered again and again must not grow the table without bound
_SCHEMA = """
CREATE TABLE blobs (
    sha256 TEXT PRIMARY KEY, total_bytes INTEGER NOT NULL, params_digest TEXT NOT NULL, last_used REAL NOT NULL
) STRICT;
CREATE TABLE key_sets (
    id_hash TEXT PRIMARY KEY, sha256 TEXT NOT NULL REFERENCES blobs ON DELETE CASCADE,
    client_spec_digest TEXT NOT NULL, created REAL NOT NULL
) STRICT;
CREATE INDEX key_sets_of_blob ON key_sets (sha256, created);
CREATE TABLE uploads (
    id_hash TEXT PRIMARY KEY, sha256 TEXT NOT NULL, total_bytes INTEGER NOT NULL, params_digest TEXT NOT NULL,
    client_spec_digest TEXT NOT NULL, offset INTEGER NOT NULL, touched REAL NOT NULL
) STRICT;
"""


@dataclass(frozen=True)
class BlobRow:
    """A stored key-set file; `last_used` in Unix seconds."""

    sha256: str
    total_bytes: int
    params_digest: str
    last_used: float


@dataclass(frozen=True)
class KeySetRow:
    """A capability to a blob."""

    sha256: str
    total_bytes: int
    params_digest: str
    client_spec_digest: str


@dataclass(frozen=True)
class UploadRow:
    """An upload under way; `offset` bytes of its part file are durable."""

    id_hash: str
    sha256: str
    total_bytes: int
    params_digest: str
    client_spec_digest: str
    offset: int
    touched: float


class KeyDb:
    """The database. Safe to call from several threads."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_LOCKED_SECONDS)
        try:
            self._set_up(path)
        except sqlite3.Error as error:
            self._connection.close()
            raise ConfigError(
                f"cannot use the key store {path}: {error}; try a new `state`, clients upload their keys again"
            ) from error

    def _set_up(self, path: Path) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            self._connection.close()
            raise ConfigError(
                f"cannot use the key store {path}: schema {version}, this build reads {SCHEMA_VERSION}; try a new `state`"
            )

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk may have rolled it back already
                    self._connection.execute("ROLLBACK")
                raise

    def _one(self, statement: str, *values: object) -> tuple[object, ...] | None:
        with self._lock:
            row: tuple[object, ...] | None = self._connection.execute(statement, values).fetchone()
            return row

    # Uploads

    def add_upload(self, row: UploadRow) -> None:
        with self._transaction() as c:
            c.execute("INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?)", tuple(vars(row).values()))

    def upload(self, id_hash: str) -> UploadRow | None:
        row = self._one("SELECT * FROM uploads WHERE id_hash = ?", id_hash)
        return None if row is None else UploadRow(*row)  # type: ignore[arg-type]

    def uploads(self) -> list[UploadRow]:
        """From the longest idle to the most recently touched."""
        with self._lock:
            return [UploadRow(*r) for r in self._connection.execute("SELECT * FROM uploads ORDER BY touched")]

    def set_offset(self, id_hash: str, offset: int, now: float) -> None:
        with self._transaction() as c:
            c.execute("UPDATE uploads SET offset = ?, touched = ? WHERE id_hash = ?", (offset, now, id_hash))

    def drop_upload(self, id_hash: str) -> None:
        with self._transaction() as c:
            c.execute("DELETE FROM uploads WHERE id_hash = ?", (id_hash,))

    # Blobs and key sets

    def blob(self, sha256: str) -> BlobRow | None:
        row = self._one("SELECT * FROM blobs WHERE sha256 = ?", sha256)
        return None if row is None else BlobRow(*row)  # type: ignore[arg-type]

    def blobs(self) -> list[BlobRow]:
        """From the least to the most recently used."""
        with self._lock:
            return [BlobRow(*r) for r in self._connection.execute("SELECT * FROM blobs ORDER BY last_used")]

    def commit_upload(self, upload: UploadRow, set_hash: str, evicted: list[str], now: float) -> None:
        """In one transaction: evict, record the blob and its first key set, and end the upload."""
        with self._transaction() as c:
            c.executemany("DELETE FROM blobs WHERE sha256 = ?", [(s,) for s in evicted])
            blob = (upload.sha256, upload.total_bytes, upload.params_digest, now)
            c.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?)", blob)
            _add_key_set(c, set_hash, upload.sha256, upload.client_spec_digest, now)
            c.execute("DELETE FROM uploads WHERE id_hash = ?", (upload.id_hash,))

    def add_key_set(self, set_hash: str, sha256: str, client_spec_digest: str, now: float) -> None:
        with self._transaction() as c:
            _add_key_set(c, set_hash, sha256, client_spec_digest, now)

    def key_set(self, set_hash: str) -> KeySetRow | None:
        row = self._one(
            "SELECT sha256, total_bytes, params_digest, client_spec_digest FROM key_sets JOIN blobs USING (sha256) "
            "WHERE id_hash = ?",
            set_hash,
        )
        return None if row is None else KeySetRow(*row)  # type: ignore[arg-type]

    def drop_key_set(self, set_hash: str) -> str | None:
        """Forget one capability; returns the blob's digest when that was the last one and the blob went with it."""
        with self._transaction() as c:
            row = c.execute("DELETE FROM key_sets WHERE id_hash = ? RETURNING sha256", (set_hash,)).fetchone()
            if row is None or c.execute("SELECT 1 FROM key_sets WHERE sha256 = ?", row).fetchone():
                return None
            c.execute("DELETE FROM blobs WHERE sha256 = ?", row)
            return str(row[0])

    def drop_blobs(self, digests: list[str]) -> None:
        with self._transaction() as c:
            c.executemany("DELETE FROM blobs WHERE sha256 = ?", [(s,) for s in digests])

    def touch(self, used: Mapping[str, float]) -> None:
        """Record when blobs were last used."""
        with self._transaction() as c:
            c.executemany("UPDATE blobs SET last_used = ? WHERE sha256 = ?", [(t, s) for s, t in used.items()])


def _add_key_set(c: sqlite3.Connection, set_hash: str, sha256: str, client_spec_digest: str, now: float) -> None:
    c.execute("INSERT INTO key_sets VALUES (?, ?, ?, ?)", (set_hash, sha256, client_spec_digest, now))
    c.execute(
        "DELETE FROM key_sets WHERE sha256 = ? AND id_hash NOT IN "
        "(SELECT id_hash FROM key_sets WHERE sha256 = ? ORDER BY created DESC LIMIT ?)",
        (sha256, sha256, _MAX_SETS_PER_BLOB),
    )
