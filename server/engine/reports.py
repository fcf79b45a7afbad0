"""What the engine tells its observer: the queue, the workers, and what each evaluation took."""

from __future__ import annotations

from ..identity.tenant import current_caller
from ..observe.events import Evaluated, KeyCacheChanged, Observer, QueueChanged, WorkerLost, WorkerUp
from .frames import Outcome
from .runtime import ModelDescription

__all__ = ["Reports"]


class Reports:
    """One line per event for the engine. `worker` is the number of a place for workers, from zero."""

    def __init__(self, observer: Observer) -> None:
        self._tell = observer

    def queue(self, length: int, predicted_ms: float) -> None:
        self._tell(QueueChanged(length, predicted_ms))

    def worker_up(self, worker: int) -> None:
        self._tell(WorkerUp(worker))

    def worker_lost(self, worker: int) -> None:
        self._tell(WorkerLost(worker))

    def job_done(self, worker: int, outcome: Outcome) -> None:
        """After every job, whatever became of it: what the worker's cache of keys looks like now."""
        cache = {name: outcome.key_cache.get(name, 0) for name in ("bytes", "hits", "misses", "evictions")}
        self._tell(KeyCacheChanged(worker, **cache))

    def evaluated(
        self, model: ModelDescription, queue_ms: float, outcome: Outcome, predicted_ms: float | None = None
    ) -> None:
        """After a successful inference, in the task of its caller, whose trace it belongs to."""
        self._tell(
            Evaluated(
                model=model.name,
                version=model.version,
                queue_ms=queue_ms,
                load_ms=outcome.load_ms,
                evaluate_ms=outcome.evaluate_ms,
                layer_ms=outcome.layer_ms,
                families=model.families,
                predicted_ms=predicted_ms,
                tenant=current_caller().tenant,
            )
        )
