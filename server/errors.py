"""Errors of the service itself, as branches of he_runtime's tree."""

from __future__ import annotations

from collections.abc import Mapping

from he_runtime.errors import Reason, SecateurError

__all__ = ["ConfigError", "ServiceError"]


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
