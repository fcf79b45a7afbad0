"""What the server tells of itself: one small type per event, and the interface that the events are pushed through.

Code that does something says so where it happens, by calling the `Observer` it was given; metrics and traces listen.
No event holds a key-set id, an upload id, a request id or a payload.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from .logs import event as log

__all__ = [
    "BytesUploaded",
    "CallEnded",
    "Evaluated",
    "Event",
    "JobsChanged",
    "KeyCacheChanged",
    "Observer",
    "QueueChanged",
    "StoreChanged",
    "WorkerLost",
    "WorkerUp",
    "nobody",
    "several",
]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened."""


@dataclass(frozen=True, slots=True)
class CallEnded(Event):
    """An RPC was answered; `reason` is empty for success. Bytes are those of its messages."""

    method: str
    reason: str
    tenant: str
    seconds: float
    received_bytes: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class QueueChanged(Event):
    """Jobs that wait for a worker now, and the milliseconds that evaluating them is predicted to take."""

    length: int
    predicted_ms: float


@dataclass(frozen=True, slots=True)
class Evaluated(Event):
    """A worker evaluated one request.

    `layer_ms` are milliseconds by the layer's name, in the order of their first operations; `families` has the family
    of each layer; `predicted_ms` is the price that the plan had, none where it has none; `tenant` is whose request it was.
    """

    model: str
    version: str
    queue_ms: float
    load_ms: float
    evaluate_ms: float
    layer_ms: Mapping[str, float] = field(default_factory=dict)
    families: Mapping[str, str] = field(default_factory=dict)
    predicted_ms: float | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class WorkerUp(Event):
    """A worker takes jobs; `worker` is the number of its place, which outlives the process."""

    worker: int


@dataclass(frozen=True, slots=True)
class WorkerLost(Event):
    """A worker that had been up is gone."""

    worker: int


@dataclass(frozen=True, slots=True)
class KeyCacheChanged(Event):
    """Loaded keys of one worker: bytes now, and look-ups and evictions since that worker came up."""

    worker: int
    bytes: int
    hits: int
    misses: int
    evictions: int


@dataclass(frozen=True, slots=True)
class BytesUploaded(Event):
    """Bytes of a key set arrived and were written."""

    count: int


@dataclass(frozen=True, slots=True)
class StoreChanged(Event):
    """What committed key sets occupy now, in bytes."""

    total_bytes: int


@dataclass(frozen=True, slots=True)
class JobsChanged(Event):
    """Submitted jobs by state, as they are now."""

    by_state: Mapping[str, int]


class Observer(Protocol):
    """Is told of events, on the thread where they happen; returns at once."""

    def __call__(self, event: Event, /) -> None: ...


def nobody(event: Event, /) -> None:
    """Listens to nothing: the default."""


def several(observers: Iterable[Observer]) -> Observer:
    """All of `observers` as one. A fault in one of them is logged, and is never the caller's."""
    listeners = tuple(observers)

    def tell(event: Event, /) -> None:
        for listener in listeners:
            try:
                listener(event)
            except Exception as error:
                log("observer failed", level=logging.ERROR, error=error, about=type(event).__name__)

    return tell if listeners else nobody
