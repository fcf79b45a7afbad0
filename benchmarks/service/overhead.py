"""What the front door adds to a request: a 400 KB request on a worker that does nothing.

    python -m benchmarks.service.overhead [--count 500]

One client asks one request after the other over loopback, from a process of its own. Everything between its call and its answer
counts: gRPC both ways, admission, the look-up of the keys, the way to the worker process and back. Beside it
the same with 1 KB, and the bare round trip of the same bytes to a gRPC server that only echoes; machines differ, the ratio of
the two less so. Prints one JSON object; the limit is 5 ms at the median on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from protos.gen.secateur.v1 import inference_pb2, inference_pb2_grpc

from .fakes import fake_server
from .targets import fake_target
from .traffic import percentile

__all__ = ["front_door", "main"]

LIMIT_MS = 5.0
_LARGE, _SMALL = 400_000, 1_000
_WARM_UP = 20


async def _times(ask: Callable[[int], Awaitable[None]], count: int) -> list[float]:
    taken = []
    for k in range(_WARM_UP + count):
        started = time.perf_counter()
        await ask(k)
        taken.append((time.perf_counter() - started) * 1e3)
    return taken[_WARM_UP:]


async def _through_the_service(address: str, log: Path, count: int, payload_bytes: int) -> list[float]:
    target = await asyncio.to_thread(fake_target, address, log, 0.0, payload_bytes)
    async with grpc.aio.insecure_channel(address) as channel:
        infer = inference_pb2_grpc.InferenceServiceStub(channel).Infer

        async def ask(k: int) -> None:
            request = target.request(f"{payload_bytes}-{k}")
            request.request_id = ""  # a client that does not ask for idempotence
            reply = await infer(request, timeout=30.0)
            assert target.is_right(f"{payload_bytes}-{k}", reply.ciphertexts)

        return await _times(ask, count)


async def _bare(count: int) -> list[float]:
    """The same bytes to a server that returns at once, in this process: what gRPC for Python takes by itself."""

    async def echo(request: bytes, context: Any) -> bytes:
        return b"x"

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    method = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare.Bare", {"Echo": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    payload = inference_pb2.InferRequest(ciphertexts=bytes(_LARGE)).SerializeToString()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary("/bare.Bare/Echo")

        async def ask(k: int) -> None:
            await call(payload, timeout=30.0)

        taken = await _times(ask, count)
    await server.stop(0)
    return taken


def front_door(directory: Path, count: int) -> dict[str, Any]:
    """Milliseconds of `count` requests each; `overhead_ms_p50` is the figure that has a limit."""
    with fake_server(directory) as server:
        log = directory / "evaluations"
        large = asyncio.run(_through_the_service(server.address, log, count, _LARGE))
        small = asyncio.run(_through_the_service(server.address, log, count, _SMALL))
    bare = asyncio.run(_bare(count))
    p50 = percentile(large, 0.5)
    return {
        "count": count,
        "overhead_ms_p50": round(p50, 2),
        "overhead_ms_p95": round(percentile(large, 0.95), 2),
        "small_ms_p50": round(percentile(small, 0.5), 2),
        "bare_grpc_ms_p50": round(percentile(bare, 0.5), 2),
        "limit_ms": LIMIT_MS,
        "ok": p50 <= LIMIT_MS,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=500, help="requests of each kind")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="secateur-overhead-") as place:
        report = front_door(Path(place), options.count)
    print(json.dumps(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
