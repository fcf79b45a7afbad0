"""How a call without the right credential is refused: the caller learns that it is, the audit log also why."""

from __future__ import annotations

from he_runtime.errors import Reason

from ..errors import ServiceError

__all__ = ["NotAuthenticated", "NotPermitted"]


class NotAuthenticated(ServiceError):
    """No credential, or one that does not hold. Every cause has the same message, which says nothing of the credential."""

    def __init__(self, cause: str) -> None:
        super().__init__(
            "cannot serve this call: got no valid credential, need a bearer token or a client certificate that this "
            "server accepts; try again with a fresh one",
            Reason.UNAUTHENTICATED,
        )
        self.cause = cause


class NotPermitted(ServiceError):
    """A caller who is known and has no right to this."""

    def __init__(self, cause: str) -> None:
        super().__init__(
            "cannot serve this call: the caller has no right to it, need another role or tenant; try asking the "
            "server's operator",
            Reason.PERMISSION_DENIED,
        )
        self.cause = cause
