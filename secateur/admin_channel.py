"""How `secateur admin` reaches a server: its address, a credential, and errors as one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import grpc

    from protos.gen.secateur.v1.admin_pb2_grpc import AdminServiceStub

__all__ = ["Admin", "Route"]


@dataclass(frozen=True)
class Admin:
    """A connected administrator."""

    stub: AdminServiceStub
    route: Route

    def call(self, method: Callable[..., Any], request: Any) -> Any:
        """Send one request and return the reply; SecateurError with the server's reason."""
        import grpc

        from he_runtime.errors import Reason, SecateurError
        from protos.status import from_rpc_error

        try:
            return method(request, timeout=self.route.timeout_seconds, metadata=self.route.metadata())
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
            known = failure.reason in Reason.__members__
            raise SecateurError(failure.message, Reason(failure.reason) if known else Reason.INTERNAL) from None


@dataclass(frozen=True)
class Route:
    """A server's admin.address and what to show it; files are PEM, but for the token's."""

    address: str
    timeout_seconds: float
    certificate: Path | None = None  # roots to trust; switches TLS on
    client_certificate: Path | None = None
    client_key: Path | None = None
    token_file: Path | None = None

    def metadata(self) -> tuple[tuple[str, str], ...]:
        if self.token_file is None:
            return ()
        return (("authorization", f"Bearer {self.token_file.read_text().strip()}"),)

    @contextmanager
    def connected(self) -> Iterator[Admin]:
        """A connection for the length of a command."""
        from protos.gen.secateur.v1.admin_pb2_grpc import AdminServiceStub

        if not self.address:
            raise typer.BadParameter("need the server's admin.address: secateur admin --address unix:PATH ...")
        in_the_clear = self.certificate is None and not self.address.startswith("unix:")
        if self.token_file is not None and in_the_clear:
            raise typer.BadParameter("a token goes to a server only over TLS or a unix socket; try --certificate")
        with self._open() as channel:
            yield Admin(AdminServiceStub(channel), self)

    def _open(self) -> grpc.Channel:
        import grpc

        address = self.address
        if address.startswith("unix:"):
            address = "unix:" + os.path.abspath(address.removeprefix("unix:"))
        options = [("grpc.enable_http_proxy", 0)]  # administration goes to this machine or the one that is named
        if self.certificate is None:
            return grpc.insecure_channel(address, options)
        files = (self.certificate, self.client_key, self.client_certificate)
        return grpc.secure_channel(
            address, grpc.ssl_channel_credentials(*(f.read_bytes() if f else None for f in files)), options
        )
