"""Admission by cost: who may wait for a worker, who is turned away, and who comes next.

A request has a price in predicted milliseconds and its payload's bytes. Those that wait keep within budgets of both;
where a tenant fills the queue, one that has less in it still gets in, at the cost of the other's latest request. Order
is fair between tenants (server.engine.fair), and a little ahead of its turn may go whose keys a free worker holds.
No process, no thread and no clock of its own: everything here is decided by its arguments.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from ..errors import ServiceError
from .allowance import Allowance
from .comeback import Comeback
from .fair import LANES, Entry, Flow, Lane, Load, choose, wait_us
from .refusals import full_queue, hopeless_deadline, over_allowance, over_share
from .settings import AdmissionConfig

__all__ = ["Admission", "Load"]

T = TypeVar("T")
_DEPTH = 8  # how far behind a tenant's head a request with resident keys is looked for
_MAX_TENANTS = 4096  # remembered without anything waiting or running


class Admission(Generic[T]):
    """The queues. `workers` is their number, `max_calls` how many calls may wait, `clock` a monotonic one in seconds.

    An entry is admitted, then taken or withdrawn; what was taken is finished, or put back if no worker began it.
    """

    def __init__(
        self,
        config: AdmissionConfig,
        workers: int,
        max_calls: int,
        clock: Callable[[], float],
        generator: random.Random | None = None,
    ) -> None:
        self._config = config
        self._workers = workers
        self._clock = clock
        self._random = generator or random.Random()
        self._flows: dict[str, Flow[T]] = {}
        self._running: dict[Entry[T], None] = {}
        self._virtual = 0.0
        self._count: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self._us: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self._bytes: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self._max_count: dict[Lane, int] = {"call": max_calls, "job": config.max_jobs}
        self._max_bytes: dict[Lane, int] = {"call": config.max_queue_bytes, "job": config.max_jobs_bytes}
        self._max_us: dict[Lane, float] = {"call": config.max_queue_ms * 1e3, "job": config.max_jobs_ms * 1e3}
        self._max_running_jobs = config.job_workers or max(1, workers - 1)

    @property
    def waiting(self) -> int:
        return sum(self._count.values())

    def items(self) -> list[T]:
        """What waits, of all tenants."""
        return [e.item for flow in self._flows.values() for queue in flow.lanes.values() for e in queue]

    def load(self) -> Load:
        active = sum(1 for flow in self._flows.values() if flow.waiting or flow.running)
        return Load(self.waiting, sum(self._us.values()) / 1e3, sum(self._bytes.values()), len(self._running), active)

    def _flow(self, tenant: str) -> Flow[T]:
        flow = self._flows.get(tenant)
        if flow is None:
            now = self._clock()
            if len(self._flows) >= _MAX_TENANTS:
                self._forget_idle(now)
            quota = self._config.quota(tenant)
            comeback = Comeback(self._workers, self._clock, self._random)
            flow = self._flows[tenant] = Flow(quota, Allowance(quota.ms_per_minute, now), comeback)
        return flow

    def _forget_idle(self, now: float) -> None:
        """Tenants of whom nothing is left to be remembered."""
        for tenant, flow in list(self._flows.items()):
            settled = flow.finish <= self._virtual and flow.allowance.is_full(now)
            if not flow.waiting and not flow.running and settled:
                del self._flows[tenant]

    # Coming in

    def admit(
        self,
        item: T,
        *,
        tenant: str,
        price_ms: float,
        payload_bytes: int,
        lane: Lane = "call",
        key: str = "",
        floor_ms: float = 0.0,
        seconds: float | None = None,
        idle: bool = False,
    ) -> tuple[Entry[T], list[Entry[T]]]:
        """Let a request wait, or run at once where a worker is `idle`; also the requests that had to leave for it.

        `seconds` is the caller's patience, `floor_ms` the least that such a request is known to take. Raises SERVER_BUSY
        for a full queue, LIMIT_EXCEEDED for a quota, both with a time to come back at, and DEADLINE_EXCEEDED.
        """
        entry = Entry(item, tenant, lane, max(1, round(price_ms * 1e3)), payload_bytes, key, round(floor_ms * 1e3))
        flow = self._flow(tenant)
        displaced = self._weigh(entry, flow, seconds, idle)
        for other in displaced:
            self.withdraw(other)
        flow.allowance.charge(entry.price_us / 1e3, self._clock())
        flow.append(entry, self._virtual)
        self._count_waiting(entry, 1)
        return entry, displaced

    def check(
        self,
        *,
        tenant: str,
        price_ms: float,
        payload_bytes: int,
        floor_ms: float = 0.0,
        seconds: float | None = None,
        idle: bool = False,
    ) -> None:
        """Raise what `admit` would raise for such a call now, before anything is spent on it."""
        entry: Entry[T | None] = Entry(
            None, tenant, "call", max(1, round(price_ms * 1e3)), payload_bytes, "", round(floor_ms * 1e3)
        )
        self._weigh(entry, self._flow(tenant), seconds, idle)

    def _weigh(self, entry: Entry[Any], flow: Flow[T], seconds: float | None, idle: bool) -> list[Entry[T]]:
        """Who has to leave for it; raises where it cannot be taken at all."""
        self._check_allowance(entry, flow)
        displaced: list[Entry[T]] = []
        if not (idle and self._may_run(flow, entry.lane)):
            self._check_share(entry, flow)
            displaced = self._make_room(entry, flow)
        self._check_deadline(entry, flow, seconds)
        return displaced

    def _count_waiting(self, entry: Entry[T], sign: int) -> None:
        self._count[entry.lane] += sign
        self._us[entry.lane] += sign * entry.price_us
        self._bytes[entry.lane] += sign * entry.payload_bytes

    def _check_allowance(self, entry: Entry[Any], flow: Flow[T]) -> None:
        price_ms = entry.price_us / 1e3
        seconds = flow.allowance.seconds_until(price_ms, self._clock())
        if seconds > 0:
            raise over_allowance(price_ms, flow.quota.ms_per_minute, flow.comeback.about(seconds))

    def _check_share(self, entry: Entry[Any], flow: Flow[T]) -> None:
        """The first that a tenant has waiting is within its share, however large it is."""
        share, waiting = flow.quota.queue_share, len(flow.lanes[entry.lane])
        over_us = flow.us[entry.lane] + entry.price_us - share * self._max_us[entry.lane]
        if share < 1 and waiting and (over_us > 0 or waiting + 1 > share * self._max_count[entry.lane]):
            raise over_share(waiting, share, self._seconds_until_room(entry, over_us))

    def _fits(self, entry: Entry[Any], gone: Sequence[Entry[T]]) -> bool:
        """Within the budgets, once `gone` are gone. The first one to wait, and the first payload, are always taken."""
        lane = entry.lane
        count = self._count[lane] - len(gone)
        us = self._us[lane] - sum(e.price_us for e in gone)
        size = self._bytes[lane] - sum(e.payload_bytes for e in gone)
        return (
            count < self._max_count[lane]
            and (not count or us + entry.price_us <= self._max_us[lane])
            and (not size or size + entry.payload_bytes <= self._max_bytes[lane])
        )

    def _make_room(self, entry: Entry[Any], flow: Flow[T]) -> list[Entry[T]]:
        """The latest requests of tenants that would still fill more of the queue than this one with its new request."""
        gone: list[Entry[T]] = []
        lane = entry.lane
        mine = (flow.us[lane] + entry.price_us) / flow.weight
        if self._fits(entry, gone):
            return gone
        left = {f: (f.us[lane], list(f.lanes[lane])) for f in self._flows.values() if f is not flow and f.lanes[lane]}
        while not self._fits(entry, gone):
            fullest = max(left, key=lambda f: left[f][0] / f.weight, default=None)
            if fullest is None or not left[fullest][1]:
                raise self.busy(entry)
            us, queue = left[fullest]
            last = queue.pop()
            if (us - last.price_us) / fullest.weight < mine:
                raise self.busy(entry)
            left[fullest] = (us - last.price_us, queue)
            gone.append(last)
        return gone

    def busy(self, entry: Entry[Any], wait_seconds: float = 0.0) -> ServiceError:
        """What a caller is told who found the queue full, or was put out of it."""
        over_us = self._us[entry.lane] + entry.price_us - self._max_us[entry.lane]
        seconds = self._seconds_until_room(entry, max(over_us, wait_seconds * 1e6 * self._workers))
        return full_queue(entry.price_us / 1e3, seconds)

    def _seconds_until_room(self, entry: Entry[Any], over_us: float) -> float:
        return self._flow(entry.tenant).comeback.seconds(max(0.0, over_us) / 1e6 / self._workers, entry.price_us / 1e3)

    def _check_deadline(self, entry: Entry[Any], flow: Flow[T], seconds: float | None) -> None:
        """Only against what was measured: an estimate of another machine turns nobody away."""
        if seconds is None or not entry.floor_us or entry.lane == "job":
            return
        floor = entry.floor_us / 1e6
        if floor > seconds:
            raise hopeless_deadline(seconds, floor)
        late = self.wait_seconds(flow) + floor - seconds
        if late > 0:
            raise self.busy(entry, late)

    def wait_seconds(self, flow: Flow[T]) -> float:
        """Predicted wait of a new call of a tenant: until a worker has done everything that comes before it."""
        tag = flow.tag(self._virtual) + flow.us["call"] / flow.weight
        others = sum(f.ahead_of(tag, "call") for f in self._flows.values() if f is not flow)
        now = self._clock()
        busy = [max(0.0, e.price_us - (now - e.started) * 1e6) for e in self._running]
        return wait_us(busy, self._workers, flow.us["call"] + others) / 1e6

    # Going to a worker

    def _may_run(self, flow: Flow[T], lane: Lane) -> bool:
        within = not flow.quota.max_running or flow.running < flow.quota.max_running
        jobs = sum(1 for e in self._running if e.lane == "job") if lane == "job" else 0
        return within and (lane == "call" or jobs < self._max_running_jobs)

    def take(self, resident: Sequence[frozenset[str]]) -> tuple[Entry[T], int] | None:
        """The next request, and which of the free workers is to do it, given the keys that each holds.

        None when nothing waits, or nothing that may run.
        """
        if not resident or not self.waiting:
            return None
        ready: list[tuple[Flow[T], list[Entry[T]]]] = []
        for flow in self._flows.values():
            if not flow.waiting:
                continue
            found = list(flow.candidates([lane for lane in LANES if self._may_run(flow, lane)], _DEPTH))
            if found:
                ready.append((flow, found))
            else:  # its own quota keeps it back: that is no credit for later
                flow.start = max(flow.start, self._virtual)
        if not ready:
            return None
        ready.sort(key=lambda pair: pair[0].start)
        flow, entry, worker = choose(ready, resident, self._config.affinity_ms * 1e3)
        flow.remove(entry)
        self._count_waiting(entry, -1)
        self._virtual = max(self._virtual, flow.start)
        flow.charge(entry)
        flow.running += 1
        entry.state, entry.started = "running", self._clock()
        self._running[entry] = None
        return entry, worker

    # Coming to an end

    def withdraw(self, entry: Entry[T]) -> None:
        """The caller of a waiting request is gone: as if it had never come. Of no effect on any other."""
        if entry.state != "waiting":
            return
        flow = self._flows[entry.tenant]
        flow.remove(entry)
        self._count_waiting(entry, -1)
        flow.allowance.charge(-entry.price_us / 1e3, self._clock())
        entry.state = "done"

    def finish(self, entry: Entry[T], used_ms: float) -> None:
        """A running request is over after `used_ms` of its worker: the tenant is charged those and not the price."""
        if entry.state != "running":
            return
        flow, used_us = self._flows[entry.tenant], round(used_ms * 1e3)
        del self._running[entry]
        flow.running -= 1
        flow.correct(used_us - entry.price_us)
        flow.allowance.charge((used_us - entry.price_us) / 1e3, self._clock())
        entry.state = "done"

    def put_back(self, entry: Entry[T]) -> None:
        """No worker began with a request that was taken: it comes next."""
        if entry.state != "running":
            return
        flow = self._flows[entry.tenant]
        del self._running[entry]
        flow.running -= 1
        flow.put_back(entry)
        self._count_waiting(entry, 1)
        entry.state = "waiting"
