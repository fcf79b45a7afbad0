"""Single operations timed round by round, each as a plan meets it: with caches full of other things."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import TypeVar

import numpy as np

from .measure import Clock, ProbeGate

__all__ = ["in_rounds", "other_work"]

K = TypeVar("K", bound=Hashable)
_MIN_ROUNDS = 3
_OTHER_BYTES = 16 << 20  # several times a usual cache of one core


def in_rounds(
    tasks: dict[K, Callable[[], float]],
    probe: Callable[[], None],
    deadline: float,
    clock: Clock,
    report: Callable[[float], None],
) -> dict[K, list[float]]:
    """Seconds per call of every task, over rounds with a steady probe; of all rounds when too few were steady.

    A task says how many calls it made. A first round is always completed, however long it takes.
    """
    for task in tasks.values():
        if time.perf_counter() < deadline:
            task()
    gate = ProbeGate(probe, clock=clock)
    between = other_work()
    steady: list[dict[K, float]] = []
    every: list[dict[K, float]] = []
    while not every or time.perf_counter() < deadline:
        before = gate.check()
        samples: dict[K, float] = {}
        for key, task in tasks.items():
            if every and time.perf_counter() >= deadline:
                break
            between()
            start = clock()
            calls = task()
            samples[key] = (clock() - start) / calls
        every.append(samples)
        if gate.check() and before:
            steady.append(samples)
        report(deadline - time.perf_counter())
    rounds = steady if len(steady) >= _MIN_ROUNDS and set(steady[0]) == set(tasks) else every
    return {key: [r[key] for r in rounds if key in r] for key in tasks}


def other_work() -> Callable[[], None]:
    """What leaves the caches of a core without what an operation reads, as the rest of a plan does."""
    written = np.zeros(_OTHER_BYTES // 8)

    def work() -> None:
        np.add(written, 1.0, out=written)

    return work
