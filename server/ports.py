"""The addresses that calls are taken on."""

from __future__ import annotations

import grpc

from .config import ServerConfig
from .errors import ConfigError
from .identity.tls import server_credentials

__all__ = ["open_ports"]


def open_ports(server: grpc.aio.Server, config: ServerConfig) -> str:
    """Bind every configured address; returns the main one with the port that was chosen."""
    tls = config.tls
    if not tls.enabled:
        return _bind(server, config.address, "address", None)
    own = server_credentials(tls, demand_client=tls.client_auth == "required")
    address = _bind(server, config.address, "address", own)
    if tls.client_auth == "optional":
        _bind(server, tls.mutual_address, "tls.mutual_address", server_credentials(tls, demand_client=True))
    return address


def _bind(server: grpc.aio.Server, address: str, name: str, credentials: grpc.ServerCredentials | None) -> str:
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(
            f"cannot listen on {name} = {address}: it is in use or not allowed; try another port"
        ) from error
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
