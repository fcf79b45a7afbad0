"""A server with identity, for tests of who may do what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from authority import Authority, Issuer, Showing, channel, write_jwks
from harness import Caller, make_config

from server.admin.settings import AdminConfig
from server.config import ServerConfig
from server.identity.settings import AuditConfig, IdentityConfig, JwtConfig, TenantConfig, TlsConfig
from server.running import RunningServer, start


@dataclass
class Service:
    """A server that takes a token on one port and a certificate on another, and an administrator's token on a third."""

    server: RunningServer
    ours: Authority
    issuer: Issuer
    mutual: str
    admin: str

    def caller(self, tenant: str, **claims: Any) -> Caller:
        line = channel(self.server.address, self.ours)
        return Caller(grpc.intercept_channel(line, Showing(self.issuer.token(tenant, **claims))))


@contextmanager
def tenants_served(root: Path) -> Iterator[Service]:
    """Such a server; the tenant `narrow` may use the model `other` only."""
    ours, issuer = Authority(), Issuer()
    certificate, key = ours.issue_server().write(root, "server")
    (root / "clients.pem").write_bytes(ours.pem)
    mutual, admin = f"unix:{root}/mutual", f"unix:{root}/admin"
    config = replace(
        make_config(root),
        tls=TlsConfig(True, certificate, key, root / "clients.pem", "optional", mutual),
        identity=IdentityConfig("either", tenants={"narrow": TenantConfig(("other",))}),
        jwt=JwtConfig(
            write_jwks(root / "jwks.json", issuer.jwk),
            issuer=Issuer.NAME,
            audience=Issuer.AUDIENCE,
            admin_claim="role",
            admin_value="admin",
        ),
        admin=AdminConfig(address=admin),
        audit=AuditConfig(max_refusals_per_second=1e6),
    )
    with start(config) as server:
        yield Service(server, ours, issuer, mutual, admin)


def configured(
    directory: Path,
    ours: Authority,
    issuer: Issuer,
    client_auth: str = "none",
    mutual_address: str = "",
    **identity: Any,
) -> ServerConfig:
    """A configuration with TLS, and with the identity that is asked for."""
    certificate, key = ours.issue_server().write(directory, "server")
    ca = directory / "clients.pem"
    ca.write_bytes(ours.pem)
    tls = TlsConfig(True, certificate, key, ca if client_auth != "none" else None, client_auth, mutual_address)
    settings = IdentityConfig(**identity)
    keys = write_jwks(directory / "jwks.json", issuer.jwk)
    jwt = JwtConfig(keys, issuer=Issuer.NAME, audience=Issuer.AUDIENCE) if settings.reads_tokens else JwtConfig()
    return replace(make_config(directory, engine={"preload": False}), tls=tls, identity=settings, jwt=jwt)
