"""The address of the AdminService: a socket for the server's own user, or a port of this machine unless callers have credentials."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import grpc

from protos.gen.secateur.v1 import admin_pb2_grpc

from ..config import ServerConfig
from ..errors import ConfigError
from ..guard import Guard
from ..identity.policy import is_loopback
from ..identity.tls import server_credentials
from ..interceptors import Boundary
from ..observe.events import Observer
from .service import AdminServicer

__all__ = ["AdminPort", "admin_problems"]

_MAX_MESSAGE_BYTES = 1 << 20
_MAX_CALLS = 16
_PARTING_SECONDS = 1.0  # for the answer of a Drain to leave


def admin_problems(config: ServerConfig) -> Iterator[str]:
    """Settings that would let anybody administer, or nobody."""
    address = config.admin.address
    if not address:
        return
    anonymous = config.identity.mode == "anonymous"
    if anonymous and not is_loopback(address):
        yield (
            f"admin.address = {address} is not loopback although identity.mode is anonymous: anyone could administer; "
            "need unix:path, a loopback address, or an identity.mode"
        )
    if not anonymous and not is_loopback(address) and not config.tls.enabled:
        yield f"admin.address = {address} is not loopback although tls.enabled is false; need TLS"
    if config.identity.mode in ("mtls", "both") and address.startswith("unix:"):
        yield (
            f"admin.address = {address} is a socket, where no certificate is shown, although identity.mode is "
            f"{config.identity.mode}: nobody could administer; need host:port"
        )


class AdminPort:
    """A gRPC server of its own, so that clients' calls can neither reach nor crowd out the operator's."""

    def __init__(self, server: grpc.aio.Server, address: str) -> None:
        self._server = server
        self.address = address

    @classmethod
    async def open(cls, config: ServerConfig, guard: Guard, observer: Observer, servicer: AdminServicer) -> AdminPort:
        """ConfigError for an address that is not allowed or in use."""
        for problem in admin_problems(config):
            raise ConfigError(problem)
        server = grpc.aio.server(
            interceptors=[Boundary(config.limits.receive_seconds, observer, guard)],
            maximum_concurrent_rpcs=_MAX_CALLS,
            options=[("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)],
        )
        admin_pb2_grpc.add_AdminServiceServicer_to_server(servicer, server)
        address = _bind(server, config)
        await server.start()
        return cls(server, address)

    async def close(self) -> None:
        await self._server.stop(_PARTING_SECONDS)
        if self.address.startswith("unix:"):
            with contextlib.suppress(OSError):
                Path(self.address.removeprefix("unix:")).unlink()


def _bind(server: grpc.aio.Server, config: ServerConfig) -> str:
    address = config.admin.address
    is_socket = address.startswith("unix:")
    try:
        if is_socket:
            with _only_this_user():
                server.add_insecure_port(address)
            return address
        if config.tls.enabled:
            demand = config.tls.client_auth != "none" and config.identity.reads_certificates
            port = server.add_secure_port(address, server_credentials(config.tls, demand_client=demand))
        else:
            port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(
            f"cannot listen on admin.address = {address}: it is in use or not allowed; try another one"
        ) from error
    return f"{address.rpartition(':')[0]}:{port}"


@contextlib.contextmanager
def _only_this_user() -> Iterator[None]:
    """Files that are made inside are readable and writable for the server's user alone, from their first moment on."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)
