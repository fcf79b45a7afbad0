"""How to reach a server: its address, whether in the clear is acceptable, and whose certificate is trusted."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from he_runtime.errors import Reason

from .credentials import read_client_certificate
from .errors import CredentialError, ServerError, ServerUnreachable, ServerUntrusted
from .keystore import ServerIdentity
from .limits import Limits

__all__ = ["Endpoint", "Route", "find_route", "open_channel"]

_FINGERPRINT = re.compile(r"(?:sha256:)?((?:[0-9a-f]{2}:?){31}[0-9a-f]{2})")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class Endpoint:
    """A server's host and port, e.g. from "localhost:50051" or "[::1]:50051"; or "unix:<path>" and port 0."""

    host: str
    port: int

    @classmethod
    def parse(cls, address: str) -> Endpoint:
        if address.startswith("unix:") and len(address) > len("unix:"):
            return cls(address, 0)
        host, colon, port = address.strip().removeprefix("dns:///").rpartition(":")
        host = host.removeprefix("[").removesuffix("]").lower()
        if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ServerError(
                f"cannot connect to {address!r}: need host:port or unix:<path>; try localhost:50051",
                Reason.SERVER_UNREACHABLE,
            )
        return cls(host, int(port))

    @property
    def is_socket(self) -> bool:
        return self.host.startswith("unix:")

    def __str__(self) -> str:
        if self.is_socket:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost" or self.is_socket:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True)
class Route:
    """How to open a channel, and whom its secrets belong to."""

    endpoint: Endpoint
    identity: ServerIdentity
    options: tuple[tuple[str, int], ...]
    credentials: grpc.ChannelCredentials | None

    def open(self) -> grpc.Channel:
        if self.credentials is None:
            return grpc.insecure_channel(str(self.endpoint), self.options)
        return grpc.secure_channel(str(self.endpoint), self.credentials, self.options)

    def open_aio(self) -> grpc.aio.Channel:
        """For the event loop that runs now."""
        if self.credentials is None:
            return grpc.aio.insecure_channel(str(self.endpoint), self.options)
        return grpc.aio.secure_channel(str(self.endpoint), self.credentials, self.options)


def find_route(
    endpoint: Endpoint,
    certificate: str | Path | None,
    limits: Limits,
    *,
    allow_insecure: bool,
    timeout_seconds: float,
    client_certificate: tuple[str | Path, str | Path] | None = None,
    with_token: bool = False,
) -> Route:
    """Decide how to reach a server; blocks, for it reads files and asks a pinned server for its certificate.

    `certificate` is the path of a PEM file, holding a root to trust or the server's own certificate to pin, or a pin
    "sha256:<64 hex digits>" of the server's own certificate. Without one the system's roots are trusted, except that
    loopback addresses (and any with `allow_insecure`) are reached without TLS. `client_certificate` is this client's own,
    as PEM files of chain and private key; `with_token` says that calls will show a bearer token.

    Raises ServerUntrusted when a pin does not match, ServerUnreachable when a pinned server cannot be reached,
    CredentialError for a client certificate that is none or has no TLS to be shown in, and for a token in the clear.
    """
    options = _options(limits)
    if endpoint.is_loopback:
        options.append(("grpc.enable_http_proxy", 0))  # a proxy of the environment has another loopback
    in_clear = certificate is None and (endpoint.is_loopback or allow_insecure)
    if in_clear and client_certificate is not None:
        raise CredentialError(f"cannot show a client certificate to {endpoint}: need TLS; try certificate=")
    if in_clear and with_token and not endpoint.is_loopback:
        raise CredentialError(f"cannot send a token to {endpoint} in the clear: need TLS; try certificate=")
    if in_clear:
        return Route(endpoint, ServerIdentity(str(endpoint)), tuple(options), None)
    roots = fingerprint = None
    if certificate is not None:
        roots, fingerprint = _trusted(endpoint, str(certificate), timeout_seconds)
    chain, secret = read_client_certificate(*client_certificate) if client_certificate is not None else (None, None)
    credentials = grpc.ssl_channel_credentials(roots, secret, chain)
    return Route(endpoint, ServerIdentity(str(endpoint), fingerprint or ""), tuple(options), credentials)


def open_channel(
    endpoint: Endpoint, certificate: str | Path | None, limits: Limits, **how: Any
) -> tuple[grpc.Channel, ServerIdentity]:
    """A blocking channel by find_route, and whom its secrets belong to."""
    route = find_route(endpoint, certificate, limits, **how)
    return route.open(), route.identity


def _trusted(endpoint: Endpoint, certificate: str, timeout_seconds: float) -> tuple[bytes, str]:
    """The PEM bytes to trust, and the fingerprint of the first certificate in them."""
    pin = _FINGERPRINT.fullmatch(certificate.lower())
    if pin is not None:
        wanted = pin[1].replace(":", "")
        pem = _presented_by(endpoint, timeout_seconds)
        got = _fingerprint(pem)
        if got != wanted:
            raise ServerUntrusted(f"cannot trust {endpoint}: got certificate sha256:{got}, need sha256:{wanted}")
        return pem, got
    try:
        pem = Path(certificate).expanduser().read_bytes()
    except OSError as error:
        raise ServerUntrusted(
            f"cannot read certificate {certificate}: {error.strerror or error}",
            "need a PEM file, or try sha256:<64 hex digits>",
        ) from error
    return pem, _fingerprint(pem)


def _fingerprint(pem: bytes) -> str:
    """sha256 of the first certificate, once OpenSSL has parsed it: gRPC would only say that it cannot connect."""
    found = _PEM.search(pem)
    try:
        if found is None:
            raise ValueError
        der = ssl.PEM_cert_to_DER_cert(found[0].decode())
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
    except (ValueError, ssl.SSLError) as error:
        raise ServerUntrusted(
            "cannot use the certificate: need an X.509 certificate in PEM form", "try the server's certificate.pem"
        ) from error
    return hashlib.sha256(der).hexdigest()


def _presented_by(endpoint: Endpoint, timeout_seconds: float) -> bytes:
    """The certificate that the server shows, unverified: the caller compares it with a pin before trusting it."""
    if endpoint.is_socket:
        raise ServerUntrusted(f"cannot pin a certificate of {endpoint}: need host:port", "try without certificate=")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((endpoint.host, endpoint.port), timeout=timeout_seconds) as plain,
            context.wrap_socket(plain, server_hostname=endpoint.host) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
    except OSError as error:
        raise ServerUnreachable(
            f"cannot reach {endpoint} over TLS: {error.strerror or type(error).__name__}; try its address and port",
            code="UNAVAILABLE",
        ) from error
    if shown is None:
        raise ServerUntrusted(f"cannot trust {endpoint}: got no certificate, need the pinned one")
    return ssl.DER_cert_to_PEM_cert(shown).encode()


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", limits.max_message_bytes),
        ("grpc.enable_retries", 0),  # Transport retries, because it knows what may be repeated
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.use_local_subchannel_pool", 1),
    ]
