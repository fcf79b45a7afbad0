"""What the administrator's statistics are made of: the last state of each thing that the server's events tell of."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from protos.admin import WorkerStats

from ..observe import events

__all__ = ["Figures"]


class Figures:
    """An observer. Events come from several threads; reading is cheap and sees whole events."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers: dict[int, WorkerStats] = {}
        self._calls: Counter[str] = Counter()
        self.queue_length = 0
        self.queue_predicted_ms = 0.0
        self.key_store_bytes = 0
        self.jobs: Mapping[str, int] = {}

    def __call__(self, event: events.Event, /) -> None:
        with self._lock:
            match event:
                case events.CallEnded(reason=reason):
                    self._calls[reason] += 1
                case events.QueueChanged(length=length, predicted_ms=predicted_ms):
                    self.queue_length, self.queue_predicted_ms = length, predicted_ms
                case events.StoreChanged(total_bytes=total_bytes):
                    self.key_store_bytes = total_bytes
                case events.JobsChanged(by_state=by_state):
                    self.jobs = dict(by_state)
                case events.WorkerUp(worker=number):
                    self._workers[number] = replace(self._worker(number), up=True)
                case events.WorkerLost(worker=number):
                    known = self._worker(number)
                    self._workers[number] = replace(known, up=False, lost=known.lost + 1)
                case events.KeyCacheChanged(worker=number):
                    self._workers[number] = replace(
                        self._worker(number),
                        key_cache_bytes=event.bytes,
                        key_cache_hits=event.hits,
                        key_cache_misses=event.misses,
                        key_cache_evictions=event.evictions,
                    )

    def _worker(self, number: int) -> WorkerStats:
        return self._workers.get(number, WorkerStats(number))

    @property
    def workers(self) -> tuple[WorkerStats, ...]:
        """By their places."""
        with self._lock:
            return tuple(self._workers[number] for number in sorted(self._workers))

    @property
    def calls(self) -> dict[str, int]:
        """Answered calls by reason, "" for success."""
        with self._lock:
            return dict(self._calls)
