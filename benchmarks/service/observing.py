"""What watching costs: inferences with metrics, and with metrics and traces, against a server that is not watched.

    python -m benchmarks.service.observing [--count 300]

Three servers run side by side and are asked in turn, one request of 400 KB after another, so that whatever else the machine
does meets all three alike. Traces go to an address where nobody listens: the worst case for the exporter. The time is the
call's as its client sees it, less what the worker reports as evaluation. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import grpc

from protos.gen.secateur.v1 import inference_pb2, inference_pb2_grpc
from server.running import RunningServer

from .fakes import fake_server, spec_digest, tests_module

__all__ = ["main", "watched_and_not"]

_PAYLOAD = b"echo:" + bytes(400_000)
_NOBODY = "http://127.0.0.1:9"  # the discard port
_WATCHED: dict[str, dict[str, dict[str, Any]]] = {
    "off": {},
    "metrics": {"metrics": {"address": "0"}},
    "metrics and traces": {"metrics": {"address": "0"}, "tracing": {"enabled": True, "endpoint": _NOBODY}},
}


def watched_and_not(directory: Path, count: int) -> dict[str, Any]:
    """Milliseconds of `count` requests to each of the three, besides evaluation."""
    with contextlib.ExitStack() as opened:
        calls = {}
        for name, sections in _WATCHED.items():
            server = opened.enter_context(fake_server(directory / name.replace(" ", "-"), sections))
            calls[name] = _caller(opened, server)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(count):
            for name, call in calls.items():
                times[name].append(call())
    report: dict[str, Any] = {"requests": count, "bytes": len(_PAYLOAD)}
    for name, values in times.items():
        report[name] = {"p50_ms": round(statistics.median(values), 2), "p95_ms": round(_high(values), 2)}
    return report


def _high(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]


def _caller(opened: contextlib.ExitStack, server: RunningServer) -> Any:
    """A function that makes one request of the server, and returns its milliseconds besides evaluation."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    channel = opened.enter_context(grpc.insecure_channel(server.address, options))
    harness = tests_module("harness")
    key_set_id = harness.Caller(channel).upload(client_spec_digest=spec_digest()).key_set_id
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    request = inference_pb2.InferRequest(model="digits", key_set_id=key_set_id, ciphertexts=_PAYLOAD)

    def call() -> float:
        started = time.perf_counter()
        reply = stub.Infer(request, timeout=60)
        return (time.perf_counter() - started) * 1e3 - reply.timings.evaluate_ms

    for _ in range(10):  # connections, loaded keys and prices are not what is measured
        call()
    return call


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=300, help="requests to each server")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="secateur-observing-") as place:
        print(json.dumps(watched_and_not(Path(place), options.count)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
