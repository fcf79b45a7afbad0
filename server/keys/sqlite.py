"""The embedded database: SQLite with WAL and synchronous=FULL, brought to the current schema when it is opened."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError
from .schema import MIGRATIONS, VERSION
from .sql import Execute, Row, refuse_newer

__all__ = ["Sqlite"]

_LOCKED_SECONDS = 2.0  # for another program, such as a backup, to let go of the database
_DIALECT = {"integer": "INTEGER", "real": "REAL", "strict": " STRICT"}


class Sqlite:
    """One file. ConfigError for one that is no database, is damaged, or was written by a newer build."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_LOCKED_SECONDS)
        try:
            self._set_up(path)
        except sqlite3.Error as error:
            self.connection.close()
            raise ConfigError(
                f"cannot use the key store {path}: {error}; try a new `state`, clients upload their keys again"
            ) from error
        except BaseException:
            self.connection.close()
            raise

    def _set_up(self, path: Path) -> None:
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute("PRAGMA foreign_keys = ON")
        self.connection.execute("PRAGMA secure_delete = ON")  # a deleted row is overwritten, not only unlinked
        (version,) = self.connection.execute("PRAGMA user_version").fetchone()
        refuse_newer(str(path), version)
        for number in range(version, VERSION):
            script = MIGRATIONS[number].format(**_DIALECT)
            self.connection.executescript(f"BEGIN; {script} PRAGMA user_version = {number + 1}; COMMIT;")

    def read(self, statement: str, *values: object) -> list[Row]:
        with self._lock:
            return list(self.connection.execute(statement, values))

    @contextmanager
    def transaction(self) -> Iterator[Execute]:
        with self._lock:
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.read
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # a full disk may have rolled it back already
                    self.connection.execute("ROLLBACK")
                raise

    def check(self) -> None:
        self.read("SELECT 1 FROM blobs LIMIT 1")

    def close(self) -> None:
        with self._lock:
            self.connection.close()
