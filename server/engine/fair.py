"""Whose turn it is: start-time fair queueing between tenants.

Every tenant has a clock of virtual time, which a dispatched request moves by its price over the tenant's weight; the
tenant whose clock is furthest behind comes next. Tenants that all have work waiting thus get worker time in
proportion to their weights, to within one request each, and a tenant who comes late neither waits for what others
piled up nor is owed what it did not ask for while it was away.
After Goyal, Vin and Cheng, "Start-time fair queueing" (1996); tags are given to the head of a queue only, so that a
request which is withdrawn leaves no trace.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from .allowance import Allowance
from .comeback import Comeback
from .settings import TenantQuota

__all__ = ["LANES", "Entry", "Flow", "Lane", "Load", "choose", "wait_us"]

T = TypeVar("T")
Lane = Literal["call", "job"]
LANES: tuple[Lane, ...] = ("call", "job")
_MAX_PASSED = 4  # how often a request lets another go ahead


@dataclass(eq=False)
class Entry(Generic[T]):
    """A request from its admission to its end. Whole microseconds, so that sums come back to exactly zero."""

    item: T
    tenant: str
    lane: Lane
    price_us: int
    payload_bytes: int
    key: str
    floor_us: int = 0
    state: Literal["waiting", "running", "done"] = "waiting"
    started: float = 0.0
    passed: int = 0  # how often a later one went ahead of it


@dataclass(eq=False)
class Flow(Generic[T]):
    """One tenant's queues and its virtual clock, in microseconds over weight."""

    quota: TenantQuota
    allowance: Allowance
    comeback: Comeback
    start: float = 0.0  # tag of the head, while something waits
    finish: float = 0.0  # where the next one's tag begins
    running: int = 0
    lanes: dict[Lane, deque[Entry[T]]] = field(default_factory=lambda: {lane: deque() for lane in LANES})
    us: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(LANES, 0))  # of what waits
    served: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(LANES, 0))

    @property
    def weight(self) -> float:
        return self.quota.weight

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self.lanes.values())

    def tag(self, virtual: float) -> float:
        """The head's tag, or that of a request which came now to an empty queue."""
        return self.start if self.waiting else max(virtual, self.finish)

    def append(self, entry: Entry[T], virtual: float) -> None:
        self.start = self.tag(virtual)
        if not self.lanes[entry.lane]:  # a lane that was empty is not owed the time of the other
            self.served[entry.lane] = max(self.served.values())
        self.lanes[entry.lane].append(entry)
        self.us[entry.lane] += entry.price_us

    def remove(self, entry: Entry[T]) -> None:
        """Out of the queue, to a worker or because its caller is gone."""
        self.lanes[entry.lane].remove(entry)
        self.us[entry.lane] -= entry.price_us

    def charge(self, entry: Entry[T]) -> None:
        """The entry goes to a worker."""
        self.served[entry.lane] += entry.price_us
        self.start = self.finish = self.start + entry.price_us / self.weight

    def put_back(self, entry: Entry[T]) -> None:
        """One that was dispatched in vain: it comes next, and its charge is taken back."""
        if not self.waiting:
            self.start = self.finish
        self.lanes[entry.lane].appendleft(entry)
        self.us[entry.lane] += entry.price_us
        self.served[entry.lane] -= entry.price_us
        self.correct(-entry.price_us)

    def correct(self, by_us: int) -> None:
        """Move the clock by what a request took more (or less, if negative) than its price."""
        self.finish += by_us / self.weight
        self.start += by_us / self.weight

    def candidates(self, lanes: Iterable[Lane], depth: int) -> Iterator[Entry[T]]:
        """The head, of the lane that got less so far, and then up to `depth` requests behind it."""
        open_lanes = [lane for lane in lanes if self.lanes[lane]]
        if open_lanes:
            queue = self.lanes[min(open_lanes, key=lambda lane: self.served[lane])]
            yield from (queue[i] for i in range(min(len(queue), depth + 1)))

    def ahead_of(self, tag: float, lane: Lane) -> int:
        """Microseconds of what waits in `lane` and comes before a request with this tag."""
        at, total = self.start, 0
        for entry in self.lanes[lane]:
            if at > tag:
                break
            total += entry.price_us
            at += entry.price_us / self.weight
        return total


@dataclass(frozen=True)
class Load:
    """What waits and runs: numbers, predicted milliseconds of one worker, and bytes of payloads that wait."""

    waiting: int
    waiting_ms: float
    waiting_bytes: int
    running: int
    tenants: int


def choose(
    ready: Sequence[tuple[Flow[T], list[Entry[T]]]], resident: Sequence[frozenset[str]], affinity_us: float
) -> tuple[Flow[T], Entry[T], int]:
    """The head of the first flow; or one a little behind it whose keys are at hand, if the head still lets it."""
    first, head = ready[0][0], ready[0][1][0]
    for flow, entries in ready:
        if flow.start > first.start + affinity_us or (flow is not first and head.passed >= _MAX_PASSED):
            break
        for entry in entries[: 1 if entries[0].passed >= _MAX_PASSED else None]:
            holder = next((i for i, keys in enumerate(resident) if entry.key in keys), None)
            if holder is None:
                continue
            for passed in {head, entries[0]} - {entry}:
                passed.passed += 1
            return flow, entry, holder
    return first, head, min(range(len(resident)), key=lambda i: len(resident[i]))


def wait_us(busy_us: Sequence[float], workers: int, ahead_us: float) -> float:
    """Until one of `workers` is free that has `ahead_us` of work before it, when some are still busy for so long."""
    free = [*busy_us, *([0.0] * (workers - len(busy_us)))]
    heapq.heapify(free)
    level, filled = heapq.heappop(free), 1
    while free and (free[0] - level) * filled < ahead_us:
        ahead_us -= (free[0] - level) * filled
        level, filled = heapq.heappop(free), filled + 1
    return level + ahead_us / filled
