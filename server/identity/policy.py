"""Who is calling: the one place where credentials become a Caller."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from .bearer import Claims, TokenVerifier, bearer_token
from .certificates import Shown, of_certificate
from .refusal import NotAuthenticated, NotPermitted
from .settings import IdentityConfig, JwtConfig
from .tenant import ANONYMOUS, Caller

__all__ = ["Policy", "is_loopback"]

_MAX_TENANT_CHARS = 128


class Policy:
    """Decides by `identity` and `jwt` of the configuration; ConfigError where tokens cannot be verified by it."""

    def __init__(self, identity: IdentityConfig, jwt: JwtConfig) -> None:
        self._config = identity
        self._verifier = TokenVerifier(jwt) if identity.reads_tokens else None

    @property
    def open_to_all(self) -> bool:
        """Whether callers have no credentials at all."""
        return self._config.mode == "anonymous"

    @property
    def open_reflection(self) -> bool:
        """Whether reflection is answered without a credential."""
        return self._config.open_reflection or self.open_to_all

    def caller(self, context: Any) -> Caller:
        """The caller behind a grpc ServicerContext.

        A credential that is shown and does not hold is refused, also where another one would have been enough; where
        two are shown they must name one tenant. Raises NotAuthenticated, or NotPermitted for a tenant that is known
        and not served.
        """
        if self._config.mode == "anonymous":
            return ANONYMOUS
        shown = of_certificate(context.auth_context(), self._config) if self._config.reads_certificates else None
        claims = self._claims(context)
        if shown is None and claims is None:
            raise NotAuthenticated("no credential")
        if self._config.mode == "both" and (shown is None or claims is None):
            raise NotAuthenticated("one of two credentials missing")
        if shown is not None and claims is not None and shown.tenant != claims.tenant:
            raise NotAuthenticated("certificate and token of different tenants")
        return self._admitted(shown, claims)

    def _claims(self, context: Any) -> Claims | None:
        if self._verifier is None:
            return None
        metadata: dict[str, list[str]] = {}
        for key, value in context.invocation_metadata() or ():
            metadata.setdefault(key, []).append(value)
        token = bearer_token(metadata)
        if token is None:
            return None
        if not _is_private(context):
            raise NotAuthenticated("token over a channel without TLS")
        return self._verifier.verify(token)

    def _admitted(self, shown: Shown | None, claims: Claims | None) -> Caller:
        tenant, subject = (claims.tenant, claims.subject) if claims is not None else ("", "")
        if shown is not None:
            tenant, subject = shown.tenant, subject or shown.subject
        if not _may_be_tenant(tenant):
            raise NotAuthenticated("tenant name not usable")
        known = self._config.tenants.get(tenant)
        if known is None and self._config.only_listed_tenants:
            raise NotPermitted("tenant not listed")
        admin = self._is_admin(shown, claims)
        some = (
            known is not None and known.models is not None and not admin
        )  # administrators load and unload every model
        models = frozenset(known.models or ()) if some and known is not None else None
        return Caller(tenant, subject[:_MAX_TENANT_CHARS], admin, models)

    def _is_admin(self, shown: Shown | None, claims: Claims | None) -> bool:
        """Only when every credential that was shown, and that the configuration asks about it, says so."""
        said = []
        if shown is not None and self._config.admin_subjects:
            said.append(bool(shown.names & set(self._config.admin_subjects)))
        if claims is not None and claims.admin is not None:
            said.append(claims.admin)
        return bool(said) and all(said)


def _may_be_tenant(name: str) -> bool:
    """Printable and short, as it goes to logs and metrics; without slash, as administrators are <tenant>/<name>; and
    never the name that callers without credential have."""
    short = 0 < len(name) <= _MAX_TENANT_CHARS
    return short and name.isprintable() and name == name.strip() and "/" not in name and name != ANONYMOUS.tenant


def _is_private(context: Any) -> bool:
    """Whether nobody on the way can read what this connection carries."""
    security: Mapping[str, Any] = context.auth_context()
    return b"ssl" in (security.get("transport_security_type") or ()) or is_loopback(context.peer())


def is_loopback(address: str) -> bool:
    """Whether an address (host:port, unix:path, or a peer as gRPC writes it) is on this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = unquote(address).removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
