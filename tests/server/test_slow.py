"""Callers who send slowly or not at all: their calls end, and others are served meanwhile."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from harness import KEYS, Caller, failure

from protos.gen.secateur.v1 import keys_pb2

RECEIVE_SECONDS = 1.0
CALLS = 8
SAID = b"no whole message within"


@pytest.fixture
def slow(serve: Any) -> tuple[str, Caller]:
    """A server of eight calls at a time, which waits a second for a message."""
    limits = {"receive_seconds": RECEIVE_SECONDS, "max_concurrent_rpcs": CALLS}
    server, caller = serve(limits=limits)
    return server.address, caller


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _headers(path: str) -> bytes:
    """Header fields as HPACK literals without indexing (RFC 7541, section 6.2.2), all shorter than 127 bytes."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )


def _half_sent(address: str, path: str) -> socket.socket:
    """A connection on which a unary call has sent its headers and the first bytes of its message, and no more."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    announced = b"\0" + struct.pack(">I", 1000) + b"x" * 10
    connection.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(4, 0, 0, b"")
        + _frame(1, 4, 1, _headers(path))
        + _frame(0, 0, 1, announced)
    )
    return connection


def _read_until(connection: socket.socket, wanted: bytes, seconds: float) -> bytes:
    found, end = b"", time.monotonic() + seconds
    while wanted not in found and time.monotonic() < end:
        connection.settimeout(max(0.01, end - time.monotonic()))
        try:
            found += connection.recv(65536)
        except TimeoutError:
            break
    return found


@pytest.mark.parametrize("method", ["InferenceService/Infer", "KeyService/CreateUpload", "ModelService/ListModels"])
def test_half_a_unary_message_frees_its_call(slow: tuple[str, Caller], method: str) -> None:
    address, caller = slow
    held = [_half_sent(address, f"/secateur.v1.{method}") for _ in range(CALLS)]
    time.sleep(0.3)  # nothing says that they have arrived, and to ask in between would take one of the calls
    assert failure(caller.get_model).reason in ("LIMIT_EXCEEDED", "INTERNAL"), "all calls are taken"
    answers = [_read_until(connection, SAID, 5.0) for connection in held]
    assert all(SAID in answer for answer in answers)
    assert caller.get_model().version == "10"
    for connection in held:
        connection.close()


def test_a_stream_that_stalls_ends_and_keeps_what_came(slow: tuple[str, Caller]) -> None:
    _, caller = slow
    upload_id, over = caller.begin(KEYS), threading.Event()

    def stalls() -> Iterator[keys_pb2.UploadChunkRequest]:
        yield keys_pb2.UploadChunkRequest(upload_id=upload_id, offset=0, data=KEYS[:10_000])
        over.wait(20)

    started = time.monotonic()
    late = failure(lambda: caller.keys.UploadChunks(stalls(), timeout=15))
    over.set()
    assert late.reason == "DEADLINE_EXCEEDED" and "no whole message within 1 s" in late.message
    assert RECEIVE_SECONDS <= time.monotonic() - started < 5
    assert caller.offset(upload_id) == 10_000
    caller.send(upload_id, KEYS[10_000:], 10_000)
    assert caller.infer(caller.commit(upload_id).key_set_id, b"echo:x").ciphertexts


def test_an_upload_slower_than_the_limit_in_all_but_not_per_message_goes_on(slow: tuple[str, Caller]) -> None:
    _, caller = slow
    upload_id = caller.begin(KEYS)

    def drips() -> Iterator[keys_pb2.UploadChunkRequest]:
        for at in range(0, len(KEYS), 25_000):
            time.sleep(0.3)
            yield keys_pb2.UploadChunkRequest(upload_id=upload_id, offset=at, data=KEYS[at : at + 25_000])

    assert caller.keys.UploadChunks(drips(), timeout=15).committed_offset == len(KEYS)


def test_one_connection_cannot_take_every_call(serve: Any) -> None:
    server, caller = serve(limits={"max_concurrent_rpcs": 8, "max_connection_rpcs": 4})
    keys = caller.upload().key_set_id
    held = [caller.inference.Infer.future(caller.request(keys, b"sleep:1.5"), timeout=30) for _ in range(12)]
    time.sleep(0.3)
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        assert Caller(channel).get_model().version == "10"
    for call in held:
        call.cancel()
