"""How the client's commands reach a server: options that they share, and the connection made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from client import Client

__all__ = [
    "Certificate",
    "ClientCertificate",
    "ClientKey",
    "Connection",
    "Home",
    "Model",
    "Retries",
    "Server",
    "Strict",
    "Timeout",
    "TokenFile",
    "Version",
]

Model = Annotated[str, typer.Argument(help="The name of the model at the server.")]
Server = Annotated[str, typer.Option(help="host:port of the server.")]
Certificate = Annotated[str | None, typer.Option(help="PEM file to trust, or sha256:... of the server's certificate.")]
ClientCertificate = Annotated[
    Path | None, typer.Option(help="Your own PEM certificate, for a server that asks for one.")
]
ClientKey = Annotated[Path | None, typer.Option(help="PEM private key of your own certificate.")]
TokenFile = Annotated[Path | None, typer.Option(help="A file that holds your bearer token; never the token itself.")]
Home = Annotated[Path | None, typer.Option(help="Where secret keys lie; your data directory otherwise.")]
Version = Annotated[str | None, typer.Option(help="Version of the model; the server's default otherwise.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse values outside the calibrated range.")]
Timeout = Annotated[float, typer.Option(help="Seconds that one request may take with its retries.", min=0.1)]
Retries = Annotated[int, typer.Option(help="How often a request is tried again that may go better.", min=0)]


@dataclass(frozen=True)
class Connection:
    """Where the server is, and who calls."""

    server: str
    certificate: str | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    token_file: Path | None = None
    home: Path | None = None
    timeout: float = 300.0
    retries: int = 5

    def open(self) -> Client:
        """A connected client; typer.BadParameter for half a client certificate, and what Client.connect raises."""
        from client import Client

        if (self.client_certificate is None) != (self.client_key is None):
            raise typer.BadParameter("--client-certificate and --client-key go together")
        pair = (self.client_certificate, self.client_key) if self.client_certificate and self.client_key else None
        return Client.connect(
            self.server,
            certificate=self.certificate,
            client_certificate=pair,
            token=self.token_file,
            home=self.home,
            timeout=self.timeout,
            retries=self.retries,
        )
