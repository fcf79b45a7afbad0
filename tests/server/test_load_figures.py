"""Short forms of what the benchmarks of the service show of load, killed workers and deadlines; the long ones are
`make soak` and `make chaos`, which hold the figures to their targets. Here the machine may be busy."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

from harness import KEYS, Caller, failure

from benchmarks.service.fakes import fake_server
from benchmarks.service.load import load
from benchmarks.service.targets import fake_target
from benchmarks.service.workers import kill_workers


def test_twice_the_load_costs_little_goodput_and_no_request(tmp_path: Path) -> None:
    log = tmp_path / "evaluated"
    with fake_server(tmp_path, {"engine": {"workers": 2}, "limits": {"max_queue": 8}}) as server:
        target = fake_target(server.address, log, 40.0, 50_000)
        figures = asyncio.run(load(target, log, seconds=3.0, clients=24, multiple=2.0))
    assert (figures["lost"], figures["doubled"]) == (0, 0), figures
    assert figures["goodput_ratio"] > 0.6, figures
    overload = figures["overload"]
    assert overload["refusals"] > 20 and overload["refusal_ms"]["p50"] < 50, figures
    assert not figures["patient"]["failures"], "who comes back when told to is served"


def test_a_killed_worker_costs_one_attempt_and_no_request(tmp_path: Path) -> None:
    log = tmp_path / "evaluated"
    with fake_server(tmp_path, {"engine": {"workers": 2}}) as server:
        target = fake_target(server.address, log, 20.0, 1000)
        figures = asyncio.run(kill_workers(target, log, workers=2, count=2, clients=4))
    assert figures["hit"] <= figures["kills"] == 2 and figures["hit_attempts_max"] <= 1, figures
    assert (figures["unanswered"], figures["doubled"]) == (0, 0), figures


def test_a_deadline_of_100_ms_frees_the_worker(serve: Any) -> None:
    """Measured by the next request, which waits for the worker from before the deadline on."""
    _, caller = serve()
    keys = caller.upload(KEYS).key_set_id
    waits = []
    for _ in range(5):
        late = threading.Thread(target=lambda: failure(lambda: caller.infer(keys, b"sleep:5", timeout=0.1)))
        started = time.monotonic()
        late.start()
        _wait_until_busy(caller, keys)
        waits.append(time.monotonic() - started - 0.1)
        late.join()
    assert min(waits) < 0.25, waits


def _wait_until_busy(caller: Caller, keys: str) -> None:
    """Ask until a request had to wait: then the one before it was at work when it came."""
    while caller.infer(keys, b"echo:next").timings.queue_ms < 20:
        pass
