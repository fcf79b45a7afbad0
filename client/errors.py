"""Errors of the client, below he_runtime's tree.

SecateurError
+-- ServerUntrusted     what the server sent would endanger the client's key, or is not what was agreed
+-- ServerError         the server answered with an error
|   +-- ServerUnreachable   no answer at all: no connection, or the connection broke too often
|   +-- NotAuthenticated    it does not accept the token or certificate, or there is none
|   +-- NotPermitted        it knows the caller, who has no right to this
|   +-- ServerBusy          its queue is full, or a quota is used up for now; `retry_after` says until when
|   +-- DeadlineExceeded    the caller's time is over; also a TimeoutError
|   +-- BatchIncomplete     some items of a batch failed: which, why, and the answers to the others
+-- CredentialError     the client's own token or certificate cannot be used, or would be shown to whoever listens
+-- KeyStoreError       the directory of secret keys cannot be used safely
+-- ReleaseRefused      a decryption cannot be made safe to publish as asked
    +-- ReleaseBudgetSpent  the key has no releases left: make new keys
    +-- PrecisionImpossible the noise that hides the key is wider than the asked precision
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from he_runtime.errors import Reason, SecateurError

if TYPE_CHECKING:
    from .prediction import Prediction

__all__ = [
    "BatchIncomplete",
    "CredentialError",
    "DeadlineExceeded",
    "KeyStoreError",
    "NotAuthenticated",
    "NotPermitted",
    "PrecisionImpossible",
    "RangeWarning",
    "ReleaseBudgetSpent",
    "ReleaseRefused",
    "ServerBusy",
    "ServerError",
    "ServerUnreachable",
    "ServerUntrusted",
]


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


class NotAuthenticated(ServerError):
    """The server accepts no credential of this client; renewing the token has been tried."""

    reason = Reason.UNAUTHENTICATED


class NotPermitted(ServerError):
    """The server knows who is calling, and refuses."""

    reason = Reason.PERMISSION_DENIED


class ServerBusy(ServerError):
    """The server has no room, or this caller's quota is used up, for `retry_after` seconds; retries did not help."""

    reason = Reason.SERVER_BUSY


class DeadlineExceeded(ServerError, TimeoutError):
    """The time that the caller gave is over."""

    reason = Reason.DEADLINE_EXCEEDED


class BatchIncomplete(ServerError):
    """Some items of a batch have no answer, for the reason of the error that this one comes from (`__cause__`).

    `done` and `missing` are indices into the batch, ascending. `prediction` holds the answers to `done`, in this order.
    """

    def __init__(
        self, cause: ServerError, done: tuple[int, ...], missing: tuple[int, ...], prediction: Prediction
    ) -> None:
        shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        super().__init__(
            f"cannot finish the batch: {len(missing)} of {len(done) + len(missing)} items failed ({shown}): {cause.message}",
            cause.reason,
            code=cause.code,
            retry_after=cause.retry_after,
        )
        self.done = done
        self.missing = missing
        self.prediction = prediction


class CredentialError(SecateurError):
    """A token or client certificate cannot be read, or must not be sent over this channel; nothing was sent."""

    reason = Reason.UNAUTHENTICATED


class KeyStoreError(SecateurError):
    """A key file or its directory is unsafe (permissions), damaged, or in use by another process."""

    reason = Reason.INTERNAL


class ReleaseRefused(SecateurError):
    """A decryption cannot be made safe to publish as asked; nothing was released."""

    reason = Reason.LIMIT_EXCEEDED


class ReleaseBudgetSpent(ReleaseRefused):
    """The key has no releases left, or nothing says how many it had: only new keys have more."""


class PrecisionImpossible(ReleaseRefused):
    """The noise that hides the key is wider than the asked precision; `best_bits` is what is possible."""

    reason = Reason.PARAMETERS_INVALID

    def __init__(self, message: str, best_bits: int) -> None:
        super().__init__(message)
        self.best_bits = best_bits


class RangeWarning(UserWarning):
    """Input values lie outside the range that the model was calibrated for; the answer may be wrong."""
