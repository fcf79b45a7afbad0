"""Memory of the server over a long time of requests, refusals and cancelled calls.

    python -m benchmarks.service.memory [--seconds 1800] [--cancelled 2000]

Clients ask one request after the other, and spread over the time calls are cancelled while they
wait or are evaluated. The resident memory of the front door and of its workers, and their open files, are read all along. The
growth is between the medians of the second and the last fifth of the time: the first is for caches to fill. Prints one JSON
object, and exits with 1 for a growth of 2 % or more, files that pile up, or a request that failed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc

from protos.gen.secateur.v1 import inference_pb2_grpc
from protos.status import from_rpc_error
from server.running import RunningServer

from .fakes import fake_server
from .targets import fake_target
from .traffic import Target

__all__ = ["main", "memory_over_time"]

LIMIT = 0.02
_CLIENTS = 4
_WORK_MS = 5.0
_PAYLOAD_BYTES = 400_000
_LOOKS = 200  # at the memory, over the whole time
_MORE_FILES = 16  # than before are allowed: connections of the moment
_CACHES = {"request_window_bytes": 8 << 20, "request_window_seconds": 2.0}  # full within the first fifth


class _Traffic:
    """Requests until the time is over, and calls that are given up."""

    def __init__(self, target: Target, until: float) -> None:
        self._target = target
        self._until = until
        self._tags = itertools.count()
        self.answered = 0
        self.cancelled = 0
        self.failures: Counter[str] = Counter()

    async def keep_asking(self) -> None:
        async with grpc.aio.insecure_channel(self._target.address) as channel:
            infer = inference_pb2_grpc.InferenceServiceStub(channel).Infer
            while time.monotonic() < self._until:
                try:
                    await infer(self._target.request(f"a{next(self._tags)}"), timeout=60.0)
                    self.answered += 1
                except grpc.aio.AioRpcError as error:
                    self.failures[from_rpc_error(error).reason] += 1

    async def keep_cancelling(self, count: int) -> None:
        """`count` calls, evenly over the time, each after a different part of its way."""
        pause = (self._until - time.monotonic()) / count
        async with grpc.aio.insecure_channel(self._target.address) as channel:
            infer = inference_pb2_grpc.InferenceServiceStub(channel).Infer
            for k in range(count):
                began = time.monotonic()
                call = infer(self._target.request(f"c{next(self._tags)}"), timeout=60.0)
                await asyncio.sleep(_WORK_MS / 1e3 * (k % 5) / 2)
                self.cancelled += call.cancel()
                await asyncio.sleep(max(0.0, pause - (time.monotonic() - began)))


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def _look(pid: int, until: float) -> tuple[list[int], list[int], int]:
    """Resident bytes of the front door, of all workers together, and the most files that the front door had open."""
    front, workers, files = [], [], 0
    pause = (until - time.monotonic()) / _LOOKS
    while time.monotonic() < until:
        front.append(_resident_bytes(pid))
        workers.append(sum(map(_resident_bytes, _children(pid))))
        files = max(files, len(os.listdir(f"/proc/{pid}/fd")))
        await asyncio.sleep(pause)
    return front, workers, files


def _growth(resident: list[int]) -> float:
    fifth = max(1, len(resident) // 5)
    return statistics.median(resident[-fifth:]) / statistics.median(resident[fifth : 2 * fifth] or resident) - 1


async def _run(server: RunningServer, log: Path, seconds: float, cancelled: int) -> dict[str, Any]:
    assert server.process is not None
    pid = server.process.pid
    target = await asyncio.to_thread(fake_target, server.address, log, _WORK_MS, _PAYLOAD_BYTES)
    traffic = _Traffic(target, time.monotonic() + seconds)
    files_before = len(os.listdir(f"/proc/{pid}/fd"))
    until = time.monotonic() + seconds
    asking = [traffic.keep_asking() for _ in range(_CLIENTS)]
    (front, workers, files), *_ = await asyncio.gather(_look(pid, until), traffic.keep_cancelling(cancelled), *asking)
    grown, workers_grown = _growth(front), _growth(workers)
    ok = max(grown, workers_grown) < LIMIT and files - files_before <= _MORE_FILES and not traffic.failures
    return {
        "seconds": seconds,
        "answered": traffic.answered,
        "cancelled": traffic.cancelled,
        "failures": dict(traffic.failures),
        "front_mib": round(statistics.median(front) / 2**20, 1),
        "front_growth": round(grown, 4),
        "workers_growth": round(workers_grown, 4),
        "files_more": files - files_before,
        "limit": LIMIT,
        "ok": ok,
    }


def memory_over_time(directory: Path, seconds: float, cancelled: int) -> dict[str, Any]:
    """The figures of so many seconds with so many cancelled calls."""
    with fake_server(directory, {"limits": _CACHES, "engine": {"workers": 2}}) as server:
        return asyncio.run(_run(server, directory / "evaluations", seconds, cancelled))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--cancelled", type=int, default=2000, help="calls")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="secateur-memory-") as place:
        report = memory_over_time(Path(place), options.seconds, options.cancelled)
    print(json.dumps(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
