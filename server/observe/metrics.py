"""Prometheus metrics of one server, in a registry of its own: several servers in one process do not meet.

Labels come from closed sets (reasons, methods, layer families) or from bounded ones (the operator's models, the worker's
place, so many tenants). No label holds an id of a key set, an upload or a request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from protos.status import code_of

from .events import (
    BytesUploaded,
    CallEnded,
    Evaluated,
    Event,
    JobsChanged,
    KeyCacheChanged,
    QueueChanged,
    StoreChanged,
    WorkerLost,
    WorkerUp,
)
from .families import OTHER
from .labels import Bounded

__all__ = ["Metrics"]

_MAX_MODELS = 200
_NOBODY = "unidentified"  # whose credential was missing or did not hold
_REFUSALS = frozenset({"RESOURCE_EXHAUSTED", "UNAUTHENTICATED", "PERMISSION_DENIED"})
_CALL_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_WORK_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
_RATIOS = (0.1, 0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0)


class Metrics:
    """Listens to events (see `Observer`) and keeps the metrics in `registry`. Thread-safe."""

    def __init__(self, build: str, max_tenants: int) -> None:
        self.registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._tenants = Bounded(max_tenants)
        self._models = Bounded(_MAX_MODELS)
        self._cached: dict[int, KeyCacheChanged] = {}
        self._up: set[int] = set()
        self._make_calls()
        self._make_work()
        self._make_keys()
        Info("secateur_build", "The server's version", registry=self.registry).info({"version": build})
        ProcessCollector(registry=self.registry)
        self._listeners: dict[type[Event], Callable[[Any], None]] = {
            CallEnded: self._call_ended,
            QueueChanged: self._queue_changed,
            Evaluated: self._evaluated,
            WorkerUp: self._worker_up,
            WorkerLost: self._worker_lost,
            KeyCacheChanged: self._key_cache_changed,
            BytesUploaded: lambda event: self._upload_bytes.inc(event.count),
            StoreChanged: lambda event: self._store_bytes.set(event.total_bytes),
            JobsChanged: self._jobs_changed,
        }

    def __call__(self, event: Event, /) -> None:
        listener = self._listeners.get(type(event))
        if listener is not None:
            with self._lock:
                listener(event)

    def _make_calls(self) -> None:
        registry = self.registry
        self._requests = Counter(
            "secateur_requests",
            "Calls answered, by reason of failure (OK: none)",
            ["method", "reason"],
            registry=registry,
        )
        self._call_seconds = Histogram(
            "secateur_request_duration_seconds",
            "From the first byte of a call to its answer",
            ["method"],
            buckets=_CALL_SECONDS,
            registry=registry,
        )
        self._received = Counter(
            "secateur_received_bytes", "Messages of calls, as they came", ["method"], registry=registry
        )
        self._sent = Counter("secateur_sent_bytes", "Messages of answers", ["method"], registry=registry)
        self._rejections = Counter(
            "secateur_rejections",
            "Calls turned away: over a limit or quota, not identified, or not allowed",
            ["reason", "tenant"],
            registry=registry,
        )

    def _make_work(self) -> None:
        registry = self.registry

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = _WORK_SECONDS) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        self._queue_length = Gauge("secateur_queue_length", "Jobs that wait for a worker", registry=registry)
        self._queue_seconds = Gauge(
            "secateur_queue_predicted_seconds", "Predicted evaluation time of the waiting jobs", registry=registry
        )
        self._queue_wait = histogram("secateur_queue_wait_seconds", "Time that an evaluated request had waited")
        self._load_seconds = histogram(
            "secateur_load_duration_seconds",
            "Reading keys or the model before an evaluation, where it had to be",
            "model",
        )
        self._evaluation_seconds = histogram(
            "secateur_evaluation_duration_seconds",
            "Decoding, homomorphic evaluation and encoding of a request",
            "model",
        )
        self._tenant_seconds = Counter(
            "secateur_tenant_evaluation_seconds",
            "Evaluation time of a tenant's requests",
            ["tenant"],
            registry=registry,
        )
        self._layer_seconds = histogram(
            "secateur_layer_duration_seconds", "Of an evaluation, the time in layers of one family", "model", "family"
        )
        self._ratio = histogram(
            "secateur_evaluation_predicted_ratio", "Predicted over measured evaluation time", "model", buckets=_RATIOS
        )
        self._workers = Gauge("secateur_workers", "Workers that are up", registry=registry)
        self._lost = Counter("secateur_workers_lost", "Workers that had been up and are gone", registry=registry)
        self._jobs = Gauge("secateur_jobs", "Submitted jobs that the server knows of", ["state"], registry=registry)

    def _make_keys(self) -> None:
        registry = self.registry
        self._cache_bytes = Gauge(
            "secateur_key_cache_bytes", "Keys loaded in a worker's memory", ["worker"], registry=registry
        )
        self._cache_counts = {
            name: Counter(f"secateur_key_cache_{name}", text, ["worker"], registry=registry)
            for name, text in (
                ("hits", "Jobs whose keys were loaded already"),
                ("misses", "Jobs whose keys had to be loaded"),
                ("evictions", "Loaded keys that gave way to others"),
            )
        }
        self._upload_bytes = Counter("secateur_upload_bytes", "Bytes of keys received and written", registry=registry)
        self._store_bytes = Gauge("secateur_store_bytes", "Committed key sets in the store", registry=registry)

    def _call_ended(self, event: CallEnded) -> None:
        self._requests.labels(event.method, event.reason or "OK").inc()
        self._call_seconds.labels(event.method).observe(event.seconds)
        self._received.labels(event.method).inc(event.received_bytes)
        self._sent.labels(event.method).inc(event.sent_bytes)
        if event.reason and code_of(event.reason).name in _REFUSALS:
            self._rejections.labels(event.reason, self._tenant(event.tenant)).inc()

    def _tenant(self, name: str) -> str:
        return self._tenants.label(name or _NOBODY)

    def _queue_changed(self, event: QueueChanged) -> None:
        self._queue_length.set(event.length)
        self._queue_seconds.set(event.predicted_ms / 1e3)

    def _evaluated(self, event: Evaluated) -> None:
        model = self._models.label(event.model)
        self._queue_wait.observe(event.queue_ms / 1e3)
        self._evaluation_seconds.labels(model).observe(event.evaluate_ms / 1e3)
        self._tenant_seconds.labels(self._tenant(event.tenant)).inc(event.evaluate_ms / 1e3)
        if event.load_ms >= 1.0:  # below that nothing was read
            self._load_seconds.labels(model).observe(event.load_ms / 1e3)
        by_family: dict[str, float] = {}
        for layer, ms in event.layer_ms.items():
            family = event.families.get(layer, OTHER)
            by_family[family] = by_family.get(family, 0.0) + ms
        for family, ms in by_family.items():
            self._layer_seconds.labels(model, family).observe(ms / 1e3)
        if event.predicted_ms is not None and event.evaluate_ms > 0:
            self._ratio.labels(model).observe(event.predicted_ms / event.evaluate_ms)

    def _worker_up(self, event: WorkerUp) -> None:
        self._up.add(event.worker)
        self._workers.set(len(self._up))
        # A new process counts from zero, and has loaded nothing.
        self._cached[event.worker] = KeyCacheChanged(event.worker, 0, 0, 0, 0)
        self._cache_bytes.labels(str(event.worker)).set(0)

    def _worker_lost(self, event: WorkerLost) -> None:
        self._up.discard(event.worker)
        self._workers.set(len(self._up))
        self._lost.inc()
        self._cache_bytes.labels(str(event.worker)).set(0)

    def _key_cache_changed(self, event: KeyCacheChanged) -> None:
        before = self._cached.get(event.worker, KeyCacheChanged(event.worker, 0, 0, 0, 0))
        self._cached[event.worker] = event
        self._cache_bytes.labels(str(event.worker)).set(event.bytes)
        for name, counter in self._cache_counts.items():
            counter.labels(str(event.worker)).inc(max(0, getattr(event, name) - getattr(before, name)))

    def _jobs_changed(self, event: JobsChanged) -> None:
        for state, count in event.by_state.items():
            self._jobs.labels(state).set(count)
