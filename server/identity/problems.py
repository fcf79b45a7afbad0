"""Settings of TLS, identity and tokens that contradict each other or leave open what they seem to close."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .bearer import TokenVerifier
from .policy import is_loopback
from .tls import read_client_ca, read_pair

if TYPE_CHECKING:
    from ..config import ServerConfig

__all__ = ["identity_problems", "unreadable_files"]


def identity_problems(config: ServerConfig) -> list[str]:
    """What is wrong, a sentence each. The server does not start with any of them; files are not read here."""
    return [*_of_channel(config), *_of_callers(config), *_of_tokens(config), *_of_tenants(config)]


def unreadable_files(config: ServerConfig) -> list[str]:
    """What is wrong with certificates and keys as they lie there now."""
    probes: list[Callable[[], object]] = []
    if config.tls.enabled:
        probes.append(lambda: read_pair(config.tls))
    if config.tls.enabled and config.tls.client_auth != "none":
        probes.append(lambda: read_client_ca(config.tls))
    if config.identity.reads_tokens:
        probes.append(lambda: TokenVerifier(config.jwt))
    problems = []
    for probe in probes:
        try:
            probe()
        except ConfigError as error:
            problems.append(error.message)
    return problems


def _of_channel(config: ServerConfig) -> Iterator[str]:
    tls = config.tls
    if not tls.enabled:
        named = [k for k in ("certificate", "private_key", "client_ca", "mutual_address") if getattr(tls, k)]
        if named or tls.client_auth != "none":
            name = named[0] if named else "client_auth"
            yield f"tls.enabled is false although tls.{name} is set; need true, or no tls.{name}"
        return
    if tls.client_auth == "none" and tls.client_ca is not None:
        yield "tls.client_ca is set although tls.client_auth is none; need required or optional"
    if tls.client_auth != "none" and tls.client_ca is None:
        yield f"tls.client_auth is {tls.client_auth} although tls.client_ca is not set; need the roots of your clients"
    if tls.client_auth == "optional" and not tls.mutual_address:
        yield "tls.client_auth is optional although tls.mutual_address is not set; need a second address"
    if tls.client_auth != "optional" and tls.mutual_address:
        yield f"tls.mutual_address is set although tls.client_auth is {tls.client_auth}; need optional"


def _of_callers(config: ServerConfig) -> Iterator[str]:
    mode, auth = config.identity.mode, config.tls.client_auth if config.tls.enabled else "none"
    open_to_all = mode == "anonymous" and auth != "required" and not is_loopback(config.address)
    if open_to_all and not config.identity.anonymous_on_network:
        yield (
            f"identity.mode is anonymous although address = {config.address} is not loopback: anyone may call; need "
            "mtls, jwt, either or both, or identity.anonymous_on_network = true"
        )
    if mode in ("mtls", "both") and auth != "required":
        yield f"identity.mode is {mode} although tls.client_auth is {auth}; need required"
    if mode == "either" and auth == "none":
        yield "identity.mode is either although tls.client_auth is none; need optional, or mode jwt"
    if mode == "jwt" and auth == "optional":
        yield "tls.client_auth is optional although identity.mode is jwt; need identity.mode either"
    uri_rule, prefix = config.identity.certificate_tenant == "uri", config.identity.uri_prefix
    if config.identity.reads_certificates and uri_rule and not prefix.endswith("/"):
        yield f"identity.uri_prefix = {prefix!r} although the tenant is read from a URI; need one that ends in /"


def _of_tokens(config: ServerConfig) -> Iterator[str]:
    identity, jwt = config.identity, config.jwt
    if not identity.reads_tokens:
        if jwt.keys is not None:
            yield f"jwt.keys is set although identity.mode is {identity.mode}; need jwt, either or both"
        return
    for name in ("keys", "issuer", "audience", "tenant_claim"):
        if not getattr(jwt, name):
            yield f"identity.mode is {identity.mode} although jwt.{name} is not set; need it to verify tokens"
    if not config.tls.enabled and not is_loopback(config.address):
        yield (
            f"identity.mode is {identity.mode} although address = {config.address} has no TLS; need tls.enabled, as "
            "anyone on the way can copy a token"
        )
    kinds = {"HS" if name.startswith("HS") else "asymmetric" for name in jwt.algorithms}
    if len(kinds) > 1:
        yield "jwt.algorithms names secret-key and public-key ones; need one sort"


def _of_tenants(config: ServerConfig) -> Iterator[str]:
    identity = config.identity
    if identity.mode == "anonymous":
        if identity.tenants or identity.only_listed_tenants or identity.admin_subjects:
            yield "identity.tenants, only_listed_tenants or admin_subjects is set although identity.mode is anonymous"
    elif identity.only_listed_tenants and not identity.tenants:
        yield "identity.only_listed_tenants is true although no identity.tenants.<name> is there; need one"
    if not identity.reads_certificates and identity.admin_subjects:
        yield f"identity.admin_subjects is set although identity.mode is {identity.mode}; need jwt.admin_claim"
