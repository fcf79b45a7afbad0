"""The tenant in a client certificate, which the TLS handshake has already verified up to a configured root."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .refusal import NotAuthenticated
from .settings import IdentityConfig

__all__ = ["Shown", "of_certificate"]

_PEM = "x509_pem_cert"  # gRPC's name for the certificate that it verified


@dataclass(frozen=True)
class Shown:
    """What a verified certificate says. `tenant` is as written; whether such a tenant may exist is asked elsewhere."""

    tenant: str
    subject: str
    names: frozenset[str]  # by which the configuration may call it an administrator


@dataclass(frozen=True)
class _Content:
    not_before: datetime.datetime
    not_after: datetime.datetime
    organizations: tuple[str, ...]
    common_names: tuple[str, ...]
    uris: tuple[str, ...]
    serial: str


def of_certificate(
    authentication: Mapping[str, Sequence[bytes]], config: IdentityConfig, now: datetime.datetime | None = None
) -> Shown | None:
    """What the certificate of a connection says; None where the connection has none.

    Raises NotAuthenticated for one that expired since the handshake, or that names no tenant, or several.
    """
    pem = authentication.get(_PEM)
    if not pem:
        return None
    content = _parsed(pem[0])
    if not content.not_before <= (now or datetime.datetime.now(datetime.UTC)) <= content.not_after:
        raise NotAuthenticated("certificate expired")
    tenant = _tenant(content, config)
    # A common name counts together with its tenant only: one tenant cannot take the name of another's administrator.
    names = frozenset((*content.uris, *(f"{tenant}/{name}" for name in content.common_names)))
    subject = next(iter((*content.uris, *content.common_names)), f"serial {content.serial}")
    return Shown(tenant, subject, names)


def _tenant(content: _Content, config: IdentityConfig) -> str:
    if config.certificate_tenant == "uri":
        after = {uri.removeprefix(config.uri_prefix) for uri in content.uris if uri.startswith(config.uri_prefix)}
        found = {rest.partition("/")[0] for rest in after}
    elif config.certificate_tenant == "common_name":
        found = set(content.common_names)
    else:
        found = set(content.organizations)
    if len(found) != 1:
        raise NotAuthenticated(f"certificate names {len(found)} tenants")
    return found.pop()


@lru_cache(maxsize=1024)
def _parsed(pem: bytes) -> _Content:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        certificate = x509.load_pem_x509_certificate(pem)
        extensions = certificate.extensions
        subject = certificate.subject
    except ValueError:
        raise NotAuthenticated("certificate unreadable") from None
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = tuple(names.get_values_for_type(x509.UniformResourceIdentifier))
    except x509.ExtensionNotFound:
        uris = ()
    return _Content(
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        tuple(str(a.value) for a in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)),
        tuple(str(a.value) for a in subject.get_attributes_for_oid(NameOID.COMMON_NAME)),
        uris,
        f"{certificate.serial_number:x}",
    )
