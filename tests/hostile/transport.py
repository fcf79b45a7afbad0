"""Below and around messages: bytes that are no HTTP/2, frames out of order, bombs, floods, calls that stay half open."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from protos.gen.secateur.v1 import keys_pb2
from tests.hostile.case import ACCEPTED, BUSY, Case, Group, bare, nth, refusal
from tests.hostile.world import SERVICE, Outcome, World
from tests.server.authority import bearer

__all__ = ["TRANSPORT"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS, _HEADERS, _DATA, _PING, _RESET, _CONTINUATION, _WINDOW, _PUSH = 4, 1, 0, 6, 3, 9, 8, 5
_MIB = 1 << 20


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _hostile_bytes(rng: random.Random, n: int) -> tuple[str, bytes]:
    start = _PREFACE + _frame(_SETTINGS, 0, 0)
    made = [
        ("random bytes", rng.randbytes(rng.randrange(1, 4096))),
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500)),
        ("half a preface", _PREFACE[: rng.randrange(1, len(_PREFACE))]),
        ("random bytes after the preface", start + rng.randbytes(4096)),
        ("a frame of 16 MB announced", start + _frame(_DATA, 0, 1, b"x", (1 << 24) - 1)),
        ("data on no stream", start + _frame(_DATA, 0, 0, b"x" * 100)),
        ("settings of 5 bytes", _PREFACE + _frame(_SETTINGS, 0, 0, b"x" * 5)),
        ("headers that are no HPACK", start + _frame(_HEADERS, 4, 1, rng.randbytes(200))),
        ("an endless header", start + _frame(_HEADERS, 0, 1, b"\x82") + _frame(_CONTINUATION, 0, 1, b"\x82") * 2000),
        ("an even stream", start + _frame(_HEADERS, 4, 2, b"\x82\x86\x84")),
        ("a window beyond 2^31", start + _frame(_WINDOW, 0, 0, struct.pack(">I", 0x7FFFFFFF)) * 3),
        ("a window of 0", start + _frame(_WINDOW, 0, 0, bytes(4))),
        ("a push", start + _frame(_PUSH, 4, 1, struct.pack(">I", 2))),
        ("a thousand pings", start + _frame(_PING, 0, 0, bytes(8)) * 1000),
        (
            "streams opened and reset",
            start
            + b"".join(
                _frame(_HEADERS, 4, s, b"\x82\x86\x84") + _frame(_RESET, 0, s, bytes(4)) for s in range(1, 999, 2)
            ),
        ),
        ("unknown frames", start + b"".join(_frame(k, 255, 0, rng.randbytes(30)) for k in range(10, 250))),
    ]
    return nth(made, n)


def _port(world: World) -> tuple[str, int]:
    host, _, port = world.address.rpartition(":")
    return host, int(port)


def _own_line(world: World) -> Any:
    """A connection of the case's own: gRPC refuses streams for a while on one where many were reset."""
    return grpc.insecure_channel(world.address, [("grpc.use_local_subchannel_pool", 1)])


def _frames(rng: random.Random, n: int, world: World) -> Case:
    """The server may close the connection or wait for more; what counts is that calls of others are answered."""
    name, data = _hostile_bytes(rng, n)

    def play(world: World) -> Outcome:
        with socket.create_connection(_port(world), timeout=1) as line:
            with contextlib.suppress(OSError):
                line.sendall(data)
            outcome = world.call("ModelService/ListModels", b"")
            line.settimeout(0.02)
            with contextlib.suppress(OSError):
                while line.recv(1 << 16):
                    pass
        return outcome

    return Case.of(name, ACCEPTED, play)


def _too_large(rng: random.Random, n: int, world: World) -> Case:
    """More bytes than any model or chunk has use for: refused by gRPC before they are read, or once they are unpacked."""
    size = nth((8, 16, 24), n) * _MIB
    method = nth(("InferenceService/Infer", "KeyService/UploadChunk", "InferenceService/SubmitJob"), n // 2)
    packed = grpc.Compression.Gzip if n % 2 else None
    name = f"{size >> 20} MB" + (", packed" if packed else "")
    return Case.of(name, BUSY, lambda world: world.call(method, bytes(size), compression=packed))


def _flood(rng: random.Random, n: int, world: World) -> Case:
    """Many small calls at once, over connections of their own: each is answered, or turned away."""
    calls = 64
    data = world.infer_request(b"").SerializeToString() if n % 2 else b"\xff"
    reason = "BYTES_TRUNCATED" if n % 2 else "BYTES_MALFORMED"
    right = refusal(reason)

    def play(world: World) -> Outcome:
        with _own_line(world) as channel, ThreadPoolExecutor(16) as pool:
            ask = lambda _: world.call("InferenceService/Infer", data, channel=channel)  # noqa: E731
            outcomes = list(pool.map(ask, range(calls)))
        return next((o for o in outcomes if o.answer not in (right, BUSY)), outcomes[0])

    return Case(f"{calls} calls at once", (right, BUSY), play)


def _chunks(rng: random.Random, n: int, world: World) -> Case:
    """A stream of many chunks that are empty, then one at a wrong place."""
    count = nth((100, 1000, 5000), n)
    good = keys_pb2.UploadChunkRequest(upload_id=world.upload_id, offset=500).SerializeToString()
    bad = keys_pb2.UploadChunkRequest(upload_id=world.upload_id, offset=1 << 63).SerializeToString()

    def play(world: World) -> Outcome:
        return world.call("KeyService/UploadChunks", [good] * min(count, 1000) + [bad])

    return Case.of(f"{min(count, 1000)} empty chunks", refusal("UPLOAD_OFFSET_WRONG"), play)


def _half_open(rng: random.Random, n: int, world: World) -> Case:
    """Calls whose message never comes, given up by the caller after a while; then one that is waited for."""
    calls = 40
    method = SERVICE + nth(("InferenceService/Infer", "KeyService/UploadChunks", "InferenceService/SubmitJob"), n)

    def play(world: World) -> Outcome:
        over = threading.Event()

        def never() -> Iterator[bytes]:
            over.wait(10)
            yield from ()

        with _own_line(world) as channel:
            line = channel.stream_stream(method)
            held = [line(never(), timeout=10, metadata=bearer(world.tokens["acme"])) for _ in range(calls)]
            outcome = world.call("ModelService/ListModels", b"")
            for call in held:
                call.cancel()
            over.set()
        return outcome

    return Case.of(f"{calls} calls held open", ACCEPTED, play)


def _waited_for(rng: random.Random, n: int, world: World) -> Case:
    """A call whose message never comes is ended by the server, after limits.receive_seconds."""
    method = nth(("InferenceService/Infer", "KeyService/UploadChunk", "InferenceService/WatchJob"), n)

    def play(world: World) -> Outcome:
        over = threading.Event()

        def never() -> Iterator[bytes]:
            over.wait(10)
            yield from ()

        try:
            return world.call(method, never())
        finally:
            over.set()

    return Case.of(f"no message to {method}", refusal("DEADLINE_EXCEEDED"), play)


def _late(rng: random.Random, n: int, world: World) -> Case:
    """Good requests whose callers leave, or whose deadline is over before they begin."""
    data = world.infer_request(world.sides["tiny"].request).SerializeToString()

    def play(world: World) -> Outcome:
        with _own_line(world) as channel:
            line = channel.stream_stream(SERVICE + "InferenceService/Infer")
            for _ in range(5):
                call = line(iter([data]), timeout=5, metadata=bearer(world.tokens["acme"]))
                time.sleep(rng.random() * 0.004)
                call.cancel()
            return world.call("ModelService/ListModels", b"")

    def too_late(world: World) -> Outcome:
        with _own_line(world) as channel:
            return world.call("InferenceService/Infer", data, seconds=seconds, channel=channel)

    if n % 2:
        return Case.of("cancelled", ACCEPTED, play)
    expected = bare("DEADLINE_EXCEEDED"), refusal("DEADLINE_EXCEEDED")
    seconds = nth((1e-6, 1e-4), n // 2)
    return Case("too late", expected, too_late)


TRANSPORT: dict[str, Group] = {
    "connections: no HTTP/2": _frames,
    "connections: calls held open": _half_open,
    "connections: calls without an end": _waited_for,
    "connections: callers who leave": _late,
    "floods: small calls": _flood,
    "floods: empty chunks": _chunks,
    "messages: too large, packed": _too_large,
}
