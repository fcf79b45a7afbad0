"""Jobs that every worker does for itself, ahead of what callers wait for: loading models, and dropping key sets."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from pathlib import Path

from .frames import Job
from .pool import Pool
from .runtime import ModelDescription
from .ticket import Ticket, ticket_of

__all__ = ["forget_keys", "load_models"]

_NO_MODEL = ModelDescription("", "", Path(), b"", "", "", "", "", 0, 0)


def load_models(pool: Pool[Ticket], models: Iterable[ModelDescription]) -> list[Ticket]:
    """One job per worker and model, each to be awaited."""
    tickets = []
    for model, slot in itertools.product(models, pool.slots):
        tickets.append(ticket_of(pool.load_job(model), b"", model))
        slot.own.append(tickets[-1])
    return tickets


def forget_keys(pool: Pool[Ticket], name: str) -> None:
    """Have every worker drop a key set: a busy one between two operations, an idle one for a job that does only that.

    The job also tells what the worker then holds; a worker that has one before it needs no second.
    """
    for slot in pool.slots:
        if slot.process.forget(name) and not any(ticket.job.kind == "forget" for ticket in slot.own):
            ticket = ticket_of(Job(next(pool.numbers), "forget", "", time.monotonic()), b"", _NO_MODEL)
            ticket.future.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody waits for it
            slot.own.append(ticket)
