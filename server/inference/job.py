"""One job: what it says of itself, and when it is forgotten."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from protos.native import JobState, JobStatus

from ..engine.ticket import Ticket
from .job_spool import JobRecord
from .settings import JobsConfig
from .time_left import seconds_left

__all__ = ["Job", "hash_of", "to_forget"]


@dataclass(eq=False)
class Job:
    """A job in memory. While it is not over, `task` runs it and `ticket` is its place in the engine."""

    record: JobRecord
    ticket: Ticket | None = None
    task: asyncio.Task[None] | None = None
    layer_names: tuple[str, ...] = ()
    layer_ms: tuple[float, ...] = ()
    over: asyncio.Event = field(default_factory=asyncio.Event)
    saving: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def state(self) -> JobState:
        if self.record.state is JobState.QUEUED and self.ticket is not None and self.ticket.slot is not None:
            return JobState.RUNNING
        return self.record.state

    def is_past(self, seconds: float) -> bool:
        """Over for longer than this; it is forgotten with the next change of any job."""
        return self.record.state.is_final and self.record.ended < time.time() - seconds

    def status(self, ratio: float | None) -> JobStatus:
        """`ratio` is measured over predicted time of the model's evaluations, None before the first."""
        state, record, ticket, layers = self.state, self.record, self.ticket, len(self.layer_names)
        if state is not JobState.RUNNING or ticket is None:
            return JobStatus(state, layers=layers, reason=record.reason, message=record.message)
        progress = ticket.progress()
        left = seconds_left(self.layer_ms, ticket.price_ms, ratio, time.monotonic() - ticket.started, progress)
        if progress is None:
            return JobStatus(state, layers=layers, seconds_left=left)
        named = self.layer_names[progress.layer] if layers == progress.layers else ""
        done, planned = progress.done, progress.planned
        return JobStatus(state, progress.layer + 1, progress.layers, named, done, planned, seconds_left=left)


def hash_of(job_id: str) -> str:
    """What is kept of an id."""
    return hashlib.sha256(job_id.encode()).hexdigest()


def to_forget(jobs: Sequence[JobRecord], config: JobsConfig, now: float, room: int) -> list[JobRecord]:
    """Finished jobs past their time, and more while there are too many or too large ones; `jobs` begin with the oldest.

    For space the oldest go of the tenant whose results are the largest in all, or else the oldest of all.
    """
    finished = [record for record in jobs if record.state.is_final]
    gone = [record for record in finished if record.ended < now - config.result_ttl_seconds]
    left = [record for record in finished if record.ended >= now - config.result_ttl_seconds]
    used: Counter[str] = Counter()
    for record in left:
        used[record.tenant] += record.result_bytes
    while left:
        too_large = used.total() > config.budget_bytes
        if not too_large and len(jobs) - len(gone) + room <= config.max_jobs:
            break
        fullest = used.most_common(1)[0][0]
        victim = next((r for r in left if r.tenant == fullest and r.result_bytes), left[0]) if too_large else left[0]
        left.remove(victim)
        used[victim.tenant] -= victim.result_bytes
        gone.append(victim)
    return gone
