"""Errors of the client, below he_runtime's tree.

SecateurError
+-- ServerUntrusted     what the server sent would endanger the client's key, or is not what was agreed
+-- ServerError         the server answered with an error
|   +-- ServerUnreachable   no answer at all: no connection, or the connection broke too often
+-- KeyStoreError       the directory of secret keys cannot be used safely
"""

from __future__ import annotations

from he_runtime.errors import Reason, SecateurError

__all__ = ["KeyStoreError", "RangeWarning", "ServerError", "ServerUnreachable", "ServerUntrusted"]


class ServerUntrusted(SecateurError):
    """The server asks for something unsafe, or its answer contradicts what it promised; nothing secret was sent."""

    reason = Reason.SERVER_UNTRUSTED

    def __init__(self, message: str, remedy: str = "try another server, or ask its operator") -> None:
        super().__init__(f"{message}; {remedy}")


class ServerError(SecateurError):
    """The server refused or failed; `code` is the gRPC status name, `retry_after` seconds where the server names it."""

    def __init__(
        self, message: str, reason: Reason | None = None, *, code: str = "UNKNOWN", retry_after: float | None = None
    ) -> None:
        super().__init__(message, reason)
        self.code = code
        self.retry_after = retry_after


class ServerUnreachable(ServerError):
    """No connection to the server, even after retries."""

    reason = Reason.SERVER_UNREACHABLE


class KeyStoreError(SecateurError):
    """A key file or its directory is unsafe (permissions), damaged, or in use by another process."""

    reason = Reason.INTERNAL


class RangeWarning(UserWarning):
    """Input values lie outside the range that the model was calibrated for; the answer may be wrong."""
