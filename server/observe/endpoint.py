"""The HTTP port that metrics are scraped from: GET /metrics, on loopback unless the operator names an interface.

Prometheus' own server gives every connection a thread for as long as it likes; here connections are few and short.
"""

from __future__ import annotations

import asyncio
import contextlib

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from ..errors import ConfigError

__all__ = ["MetricsEndpoint", "split_address"]

_LOOPBACK = "127.0.0.1"
_MAX_CONNECTIONS = 16
_MAX_HEAD_BYTES = 16 << 10
_SECONDS = 10.0  # for a whole exchange
_TEXTS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of metrics.address; a port alone is one of loopback. ConfigError for anything else."""
    host, colon, port = address.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"cannot use metrics.address = {address!r}: need host:port, or a port alone for loopback")
    return (host.strip("[]") if colon and host else _LOOPBACK), int(port)


class MetricsEndpoint:
    """Answers scrapes of `registry` at `address` (with the port that was chosen) until it is closed."""

    def __init__(self, server: asyncio.Server, answerer: _Answerer, address: str) -> None:
        self._server = server
        self._answerer = answerer
        self.address = address

    @classmethod
    async def open(cls, address: str, registry: CollectorRegistry) -> MetricsEndpoint:
        """ConfigError when the address is malformed or taken."""
        host, port = split_address(address)
        answerer = _Answerer(registry)
        try:
            server = await asyncio.start_server(answerer.serve, host, port, limit=_MAX_HEAD_BYTES)
        except OSError as error:
            raise ConfigError(
                f"cannot use metrics.address = {address}: {error.strerror or error}; try another port"
            ) from error
        chosen = server.sockets[0].getsockname()[1]
        return cls(server, answerer, f"[{host}]:{chosen}" if ":" in host else f"{host}:{chosen}")

    async def close(self) -> None:
        """Take no more connections, and end those that there are."""
        self._server.close()
        self._answerer.hang_up()
        await asyncio.sleep(0)  # lets the sockets go


class _Answerer:
    """One request per connection."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._connections: set[asyncio.StreamWriter] = set()

    def hang_up(self) -> None:
        for writer in self._connections:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            async with asyncio.timeout(_SECONDS):
                if len(self._connections) > _MAX_CONNECTIONS:
                    await _send(writer, 503)
                else:
                    await self._answer(reader, writer)
        except (TimeoutError, OSError):
            pass  # a caller who is gone or too slow
        finally:
            self._connections.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return await _send(writer, 400)
        request, *lines = head.split("\r\n")
        parts = request.split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            return await _send(writer, 400)
        method, target, _ = parts
        if method not in ("GET", "HEAD"):
            return await _send(writer, 405)
        if target.partition("?")[0] != "/metrics":
            return await _send(writer, 404)
        accept = next((v.strip() for k, _, v in (x.partition(":") for x in lines) if k.lower() == "accept"), "")
        encode, kind = choose_encoder(accept)
        body = await asyncio.to_thread(encode, self._registry)
        return await _send(writer, 200, body, kind, head_only=method == "HEAD")


async def _send(
    writer: asyncio.StreamWriter, code: int, body: bytes = b"", kind: str = "text/plain", head_only: bool = False
) -> None:
    head = (
        f"HTTP/1.1 {code} {_TEXTS[code]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode("latin-1") + (b"" if head_only else body))
    await writer.drain()
