"""A job on its way from its caller to a worker and back."""

from __future__ import annotations

import asyncio
import time
from contextvars import Context, copy_context
from dataclasses import dataclass, field

from .fair import Entry
from .frames import Job, Outcome
from .pool import Slot
from .progress import Progress
from .runtime import ModelDescription

__all__ = ["Evaluation", "Ticket", "ticket_of"]


@dataclass(frozen=True)
class Evaluation:
    """A finished job; `predicted_ms` is the price that it was admitted at."""

    reply: bytes = field(repr=False)
    queue_ms: float
    outcome: Outcome
    predicted_ms: float = 0.0


@dataclass(eq=False)
class Ticket:
    """A job between its caller and a worker."""

    job: Job
    payload: bytes = field(repr=False)
    future: asyncio.Future[tuple[Outcome, bytes]]
    created: float
    model: ModelDescription
    price_ms: float = 0.0
    estimate_ms: float | None = None  # the plan's price as it is, of the cost table
    started: float = 0.0
    slot: Slot[Ticket] | None = None
    entry: Entry[Ticket] | None = None
    context: Context = field(default_factory=copy_context, repr=False)

    def progress(self) -> Progress | None:
        """How far the worker is; None while it has not said."""
        if self.slot is None or self.slot.running != self.job.number:
            return None
        return self.slot.process.progress(self.job.number)


def ticket_of(job: Job, payload: bytes, model: ModelDescription) -> Ticket:
    """A new ticket, of the current event loop and caller."""
    return Ticket(job, payload, asyncio.get_running_loop().create_future(), time.monotonic(), model)
