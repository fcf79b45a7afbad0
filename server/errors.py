"""Errors of the service itself, as branches of he_runtime's tree."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Mapping

from he_runtime.errors import Reason, SecateurError

__all__ = ["ConfigError", "ServiceError", "storage_failure"]

_DISK_SECONDS = 10.0  # before a caller tries again
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class ConfigError(SecateurError):
    """The configuration is malformed; the message names the key. Raised before serving, never crosses the network."""


class ServiceError(SecateurError):
    """A request that cannot be served.

    `subject` names what the error is about and never holds a capability (upload or key-set id).
    `retry_after_seconds` is given where trying again may help; `metadata` holds further facts for the client.
    """

    def __init__(
        self,
        message: str,
        reason: Reason,
        *,
        subject: str = "",
        retry_after_seconds: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason)
        self.subject = subject
        self.retry_after_seconds = retry_after_seconds
        self.metadata = dict(metadata or {})


def storage_failure(error: BaseException) -> ServiceError | None:
    """What a caller is told when the disk is full or another program holds the database; None for any other error."""
    if (isinstance(error, OSError) and error.errno in _FULL) or _sqlite_code(error) == sqlite3.SQLITE_FULL:
        message, reason = "got no space on the server's disk, need some", Reason.LIMIT_EXCEEDED
    elif _sqlite_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        message, reason = "got no access to the key store, which another program holds", Reason.SERVER_BUSY
    else:
        return None
    return ServiceError(
        f"cannot store the keys: {message}; try again later, or ask the server's operator",
        reason,
        subject="storage",
        retry_after_seconds=_DISK_SECONDS,
    )


def _sqlite_code(error: BaseException) -> int | None:
    """SQLite's primary result code."""
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(error, sqlite3.Error) and isinstance(code, int) else None
