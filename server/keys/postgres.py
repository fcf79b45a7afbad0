"""PostgreSQL through psycopg 3: one connection that is opened again after a loss, and answers at once while it is down."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from he_runtime.errors import Reason

from ..errors import ConfigError, ServiceError
from .schema import MIGRATIONS, VERSION
from .sql import Execute, Row, refuse_newer, store_down

__all__ = ["Postgres"]

_DIALECT = {"integer": "BIGINT", "real": "DOUBLE PRECISION", "strict": ""}
_WRITER = 7355608  # the advisory lock of whoever writes, the same in every server of one database
_WAIT_SECONDS = 5.0  # for the connection, which another thread uses
_PAUSE_SECONDS = 0.5  # between two attempts to connect
# A database that hangs must not hang the server: every wait has an end.
_SETTINGS: dict[str, Any] = {
    "connect_timeout": "3",
    "tcp_user_timeout": "5000",
    "keepalives_idle": "5",
    "application_name": "secateur",
    "options": "-c statement_timeout=5s -c lock_timeout=5s -c idle_in_transaction_session_timeout=10s "
    "-c synchronous_commit=on",
}


class Postgres:
    """The database behind a postgresql:// URL; several servers may share it. Its schema is made in `public`'s place,
    the first schema of the user's search path.

    ConfigError where psycopg is missing, or where the database refuses at the start.
    """

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError:
            raise ConfigError(
                "cannot use keys.database: psycopg is not installed; try pip install 'secateur[postgres]'"
            ) from None
        self._psycopg = psycopg
        self._url = url
        self._lock = threading.RLock()
        self._connection: Any = None
        self._tried = -_PAUSE_SECONDS
        try:
            with self.transaction() as execute:
                _migrate(execute)
        except (ServiceError, psycopg.Error) as error:
            cause = error.__cause__ or error  # libpq's text names host and user, never the password
            self.close()
            raise ConfigError(f"cannot use keys.database: {str(cause).strip()}; need a running PostgreSQL") from error

    def read(self, statement: str, *values: object) -> list[Row]:
        with self._locked():
            for attempt in (1, 2):
                fresh = self._connection is None
                try:
                    return self._execute(statement, *values)
                except self._psycopg.OperationalError as error:
                    self._drop()
                    if fresh or attempt == 2:
                        raise self._failure(error) from error
        raise AssertionError("unreachable: the second attempt returns or raises")

    @contextmanager
    def transaction(self) -> Iterator[Execute]:
        with self._locked():
            self._begin()
            try:
                yield self._execute
                self._execute("COMMIT")
            except self._psycopg.OperationalError as error:
                self._drop()
                raise self._failure(error) from error
            except BaseException:
                self._roll_back()
                raise

    def _begin(self) -> None:
        """The same as SQLite's BEGIN IMMEDIATE: one writer. A connection that was lost meanwhile is found out here."""
        for attempt in (1, 2):
            fresh = self._connection is None
            try:
                self._execute("BEGIN")
                self._execute("SELECT pg_advisory_xact_lock(?)", _WRITER)
                return
            except self._psycopg.OperationalError as error:
                self._drop()
                if fresh or attempt == 2:
                    raise self._failure(error) from error

    def _roll_back(self) -> None:
        try:
            self._execute("ROLLBACK")
        except self._psycopg.Error:
            self._drop()

    def _execute(self, statement: str, *values: object) -> list[Row]:
        if self._connection is None:
            self._connect()
        cursor = self._connection.execute(statement.replace("?", "%s") if values else statement, values or None)
        return [] if cursor.description is None else list(cursor.fetchall())

    def _connect(self) -> None:
        pause = self._tried + _PAUSE_SECONDS - time.monotonic()
        if pause > 0:
            raise store_down("database")
        self._tried = time.monotonic()
        self._connection = self._psycopg.connect(self._url, autocommit=True, prepare_threshold=None, **_SETTINGS)
        self._tried = -_PAUSE_SECONDS

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The connection for one statement or transaction; who waits for it too long cuts it, as its server hangs."""
        if not self._lock.acquire(timeout=_WAIT_SECONDS):
            self._cut()
            raise store_down("database")
        try:
            yield
        finally:
            self._lock.release()

    def _cut(self) -> None:
        """End the wait of whoever holds the connection. No time limit of the database's own does, once it is frozen."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError, self._psycopg.Error):  # it may be closed meanwhile
                _shut(os.dup(connection.fileno()))

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _failure(self, error: Exception) -> Exception:
        """A disk that is full is said like the server's own; everything else operational is an absence."""
        if isinstance(error, self._psycopg.errors.DiskFull):
            return ServiceError(
                "cannot store the keys: got no space on the database's disk, need some; try again later",
                Reason.LIMIT_EXCEEDED,
                subject="storage",
                retry_after_seconds=10.0,
            )
        return store_down("database")

    def check(self) -> None:
        self.read("SELECT 1 FROM blobs LIMIT 1")

    def close(self) -> None:
        with self._lock:
            self._drop()


def _shut(descriptor: int) -> None:
    with socket.socket(fileno=descriptor) as wire:
        wire.shutdown(socket.SHUT_RDWR)


def _migrate(execute: Execute) -> None:
    """Under the writer's lock, so that of several servers that start at once one does it."""
    execute("CREATE TABLE IF NOT EXISTS secateur_schema (version INTEGER NOT NULL)")
    rows = execute("SELECT version FROM secateur_schema")
    version = rows[0][0] if rows else 0
    refuse_newer("in PostgreSQL", version)
    if not rows:
        execute("INSERT INTO secateur_schema VALUES (0)")
    for number in range(version, VERSION):
        execute(MIGRATIONS[number].format(**_DIALECT))
    execute(f"UPDATE secateur_schema SET version = {VERSION}")
