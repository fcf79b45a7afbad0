"""The worker's own parts: when evaluation stops, what is cached, and what the front door takes from it."""

from __future__ import annotations

import json
import mmap
import os
import time
from multiprocessing import Pipe

import pytest

from he_runtime.errors import Cancelled, Reason
from server.engine.frames import CancelFlag, Job, Outcome, receive_outcome, send_outcome
from server.engine.layer_clock import LayerClock
from server.engine.lru import CostLru
from server.engine.worker import _guard


def job(number: int, seconds: float = 60.0) -> Job:
    return Job(number, "infer", "models/a/1", time.monotonic() + seconds)


def test_evaluation_stops_for_its_own_cancellation_only() -> None:
    flag = CancelFlag(mmap.mmap(-1, CancelFlag.SIZE))
    check = _guard(job(7), flag, os.getppid())
    check()
    flag.request(6)
    check()
    flag.request(7)
    with pytest.raises(Cancelled) as stopped:
        check()
    assert stopped.value.reason is Reason.CANCELLED


def test_evaluation_stops_at_its_deadline() -> None:
    flag = CancelFlag(mmap.mmap(-1, CancelFlag.SIZE))
    with pytest.raises(Cancelled) as stopped:
        _guard(job(7, -0.001), flag, os.getppid())()
    assert stopped.value.reason is Reason.DEADLINE_EXCEEDED


def test_a_worker_ends_with_the_front_door() -> None:
    flag = CancelFlag(mmap.mmap(-1, CancelFlag.SIZE))
    with pytest.raises(SystemExit):
        _guard(job(7), flag, os.getppid() + 1)()


def test_the_cache_keeps_the_most_recently_used_within_its_budget() -> None:
    cache: CostLru[str, int] = CostLru(10, lambda value: value)
    for key, cost in (("a", 4), ("b", 4)):
        cache.put(key, cost)
    assert cache.get("a") == 4
    cache.put("c", 4)
    assert (cache.keys(), cache.total) == (["a", "c"], 8) and cache.get("b") is None
    cache.put("a", 1)
    assert cache.total == 5
    cache.put("huge", 99)
    assert (cache.keys(), cache.total) == (["huge"], 99), "the newest stays even when alone over the budget"


def test_an_outcome_crosses_and_a_forged_one_does_not() -> None:
    ours, theirs = Pipe()
    outcome = Outcome(3, "", "", 1.5, 2.5, {"rotate": 2}, ["ab"], {"dense": 2.5}, {"bytes": 9})
    send_outcome(theirs, outcome, b"reply")
    assert receive_outcome(ours, 100) == (outcome, b"reply")
    forged = [
        json.dumps([1]),
        json.dumps({"number": 1}),
        json.dumps({**vars(outcome), "reason": "NO_SUCH_REASON"}),
        json.dumps({**vars(outcome), "extra": 1}),
        "not json",
        json.dumps({**vars(outcome), "evaluate_ms": -1}),
        json.dumps({**vars(outcome), "layer_ms": {"dense": float("nan")}}),
    ]
    for text in forged:
        theirs.send_bytes(text.encode())
        theirs.send_bytes(b"")
        with pytest.raises(ValueError):
            receive_outcome(ours, 100)
        while ours.poll():  # the front door drops such a worker; here the pipe is reused
            ours.recv_bytes()
    send_outcome(theirs, outcome, bytes(101))
    with pytest.raises(OSError):
        receive_outcome(ours, 100)


def test_layers_are_timed_also_where_they_interleave() -> None:
    times = iter([0.0, 1.0, 1.0, 4.0, 4.0, 4.5])
    clock = LayerClock(lambda: next(times))
    for layer in ("dense", "square", "dense"):
        clock(layer)
    clock.stop()
    clock.stop()
    assert clock.ms == {"dense": 1500.0, "square": 3000.0}


def test_the_cache_counts_what_becomes_of_look_ups() -> None:
    cache: CostLru[str, int] = CostLru(10, lambda value: value)
    cache.get("a")
    cache.put("a", 8)
    cache.get("a")
    cache.put("b", 8)
    cache.drop("b")
    assert (cache.hits, cache.misses, cache.evictions) == (1, 1, 1), "a drop that was asked for is no eviction"
