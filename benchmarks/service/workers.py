"""kill -9 of a worker, again and again, under load: who is told what, and when the workers are back.

    python -m benchmarks.service.workers [--count 50] [--clients 8] [--work-ms 50]

Clients ask without a pause, each request with a request_id of its own, and try again under it as they are told. Each time
the workers have recovered, one of them is killed. At most the requests in flight on it may fail, with UNAVAILABLE; each of
those must then get exactly one right reply, and the next worker must take requests within five seconds. Prints one JSON
object; exits with 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .fakes import fake_server
from .targets import evaluations, fake_target, workers_seen
from .traffic import Answer, Clients, Target, tally

__all__ = ["kill_workers", "main"]

_BACK_SECONDS = 5.0
_POLL_SECONDS = 0.05
_SETTLE_SECONDS = 0.3  # of load between two kills
_GIVE_UP_SECONDS = 60.0


async def kill_workers(target: Target, log: Path, *, workers: int, count: int, clients: int) -> dict[str, Any]:
    """Kill one of the `workers` of the target's server, `count` times, while `clients` ask."""
    over, recoveries = asyncio.Event(), list[float]()
    async with Clients(target, clients) as asking:
        started = time.monotonic()
        load = asyncio.create_task(asking.one_after_the_other(_GIVE_UP_SECONDS * (count + 1), over.is_set))
        try:
            await _until(lambda: len(set(workers_seen(log))) == workers)
            for _ in range(count):
                recoveries.append(await _kill_one(log))
                await asyncio.sleep(_SETTLE_SECONDS)
        finally:
            over.set()
            answers = await load
    return _figures(answers, recoveries, evaluations(log), time.monotonic() - started)


async def _kill_one(log: Path) -> float:
    """Kill the worker that ended an evaluation last; seconds until one that was not there before has ended one."""
    known = set(workers_seen(log))
    started = time.monotonic()
    os.kill(workers_seen(log)[-1], signal.SIGKILL)
    await _until(lambda: bool(set(workers_seen(log)) - known))
    return time.monotonic() - started


async def _until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(_GIVE_UP_SECONDS):
        while not reached():
            await asyncio.sleep(_POLL_SECONDS)


def _figures(
    answers: Sequence[Answer], recoveries: Sequence[float], counts: dict[str, int], seconds: float
) -> dict[str, Any]:
    hit = [a for a in answers if a.lost]
    return {
        "kills": len(recoveries),
        "requests": tally(answers, seconds),
        "hit": len(hit),  # requests with an attempt that failed with UNAVAILABLE
        "hit_per_kill": round(len(hit) / max(1, len(recoveries)), 2),
        "hit_attempts_max": max((a.lost for a in hit), default=0),
        "unanswered": sum(bool(a.reason) for a in answers),
        # One that was killed may have been evaluated to its end before; any other only once.
        "doubled": sum(counts[a.tag] > 1 + a.lost for a in answers),
        "back_seconds_max": round(max(recoveries, default=0.0), 2),
        "reply_after_hit_seconds_max": round(max((a.lost_seconds for a in hit), default=0.0), 2),
    }


def missed(figures: dict[str, Any]) -> list[str]:
    """Names of the figures that are not as they must be."""
    good = {
        "hit": figures["hit"] <= figures["kills"],
        "unanswered": figures["unanswered"] == 0,
        "doubled": figures["doubled"] == 0,
        "back_seconds_max": figures["back_seconds_max"] < _BACK_SECONDS,
    }
    return [name for name, is_good in good.items() if not is_good]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "evaluated"
        with fake_server(Path(name), {"engine": {"workers": arguments.workers}}) as server:
            target = fake_target(server.address, log, arguments.work_ms, 1000)
            figures = asyncio.run(
                kill_workers(target, log, workers=arguments.workers, count=arguments.count, clients=arguments.clients)
            )
    return {"settings": vars(arguments), **figures}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50, help="of workers killed")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work-ms", type=float, default=50.0)
    figures = run(parser.parse_args(arguments))
    figures["missed"] = missed(figures)
    figures["ok"] = not figures["missed"]
    print(json.dumps(figures))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
