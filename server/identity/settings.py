"""What an operator can say about channels, credentials, tenants and the audit log.

Kept apart from what enforces it, so that the configuration loads neither gRPC nor a cryptography library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError

__all__ = ["AuditConfig", "IdentityConfig", "JwtConfig", "TenantConfig", "TlsConfig"]

CLIENT_AUTH = ("none", "optional", "required")
MODES = ("anonymous", "mtls", "jwt", "either", "both")
CERTIFICATE_RULES = ("organization", "common_name", "uri")
_MIB = 1 << 20


@dataclass(frozen=True)
class TlsConfig:
    """PEM files, read again when they change. Without TLS anyone on the way can read which model is asked and swap
    evaluation keys.

    A listening port of gRPC for Python either demands a client certificate or never asks for one. Hence "optional"
    means two ports: `address` asks for none, `mutual_address` demands one.
    """

    enabled: bool = False
    certificate: Path | None = None
    private_key: Path | None = None
    client_ca: Path | None = None  # roots that client certificates must lead to
    client_auth: str = "none"  # none | optional | required
    mutual_address: str = ""  # with "optional": where a client certificate is demanded

    def __post_init__(self) -> None:
        _one_of("tls.client_auth", self.client_auth, CLIENT_AUTH)


@dataclass(frozen=True)
class TenantConfig:
    """What one tenant may do."""

    models: tuple[str, ...] | None = None  # names; none: every model


@dataclass(frozen=True)
class IdentityConfig:
    """Which credential a call needs, and how a tenant is read from it.

    In a certificate the tenant is the subject's organization, its common name, or ("uri") the path segment after
    `uri_prefix` in a URI subject alternative name, e.g. "acme" in spiffe://example.org/tenant/acme/worker under the
    prefix spiffe://example.org/tenant/.
    """

    mode: str = "anonymous"  # anonymous | mtls | jwt | either (one of the two) | both
    anonymous_on_network: bool = False  # serve anonymous callers on an address that is not loopback
    certificate_tenant: str = "organization"  # organization | common_name | uri
    uri_prefix: str = ""
    admin_subjects: tuple[str, ...] = ()  # certificates whose holder administers: a URI, or <tenant>/<common name>
    open_reflection: bool = False  # answer reflection without a credential
    only_listed_tenants: bool = False  # refuse tenants without a table of their own
    tenants: Mapping[str, TenantConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("identity.mode", self.mode, MODES)
        _one_of("identity.certificate_tenant", self.certificate_tenant, CERTIFICATE_RULES)

    @property
    def reads_certificates(self) -> bool:
        return self.mode in ("mtls", "either", "both")

    @property
    def reads_tokens(self) -> bool:
        return self.mode in ("jwt", "either", "both")


@dataclass(frozen=True)
class JwtConfig:
    """How bearer tokens are verified. A claim's name is a top-level one, or a path into objects with dots."""

    keys: Path | None = None  # a JWKS, or PEM public keys; read again when it changes, never fetched
    algorithms: tuple[str, ...] = ("RS256", "PS256", "ES256", "EdDSA")
    issuer: str = ""
    audience: str = ""
    leeway_seconds: float = 30.0  # how far clocks may differ
    required_claims: tuple[str, ...] = ()  # besides exp, iss, aud, sub and the tenant's
    tenant_claim: str = "tenant"
    admin_claim: str = ""  # a text or a list of texts, e.g. roles; empty: tokens make no administrators
    admin_value: str = "secateur-admin"


@dataclass(frozen=True)
class AuditConfig:
    """The audit log: one hash-chained line per action, without payloads."""

    enabled: bool = True
    directory: Path | None = None  # none: <state>/audit
    max_bytes: int = 16 * _MIB  # of one file
    max_files: int = 16  # the oldest beyond them are removed
    required: bool = False  # refuse calls that cannot be recorded
    max_pending: int = 4096  # records that wait for the disk; further ones are lost and counted
    max_refusals_per_second: float = (
        20.0  # calls of nobody; further ones are counted, or else they would push out the rest
    )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"cannot use {name} = {value!r}: need one of {', '.join(allowed)}")
