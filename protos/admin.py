"""What crosses the network on the administrator's port: native types, and their native <-> proto pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from .gen.secateur.v1 import admin_pb2

__all__ = [
    "ModelVersion",
    "ServerStats",
    "VersionState",
    "WorkerStats",
    "model_version_from_proto",
    "model_version_to_proto",
    "server_stats_from_proto",
    "server_stats_to_proto",
    "worker_stats_from_proto",
    "worker_stats_to_proto",
]


class VersionState(StrEnum):
    """Whether a version of the repository is served."""

    SERVED = "served"
    REFUSED = "refused"  # it does not verify
    PRESENT = "present"  # in the directory, not loaded


_STATES = {
    VersionState.SERVED: admin_pb2.VERSION_STATE_SERVED,
    VersionState.REFUSED: admin_pb2.VERSION_STATE_REFUSED,
    VersionState.PRESENT: admin_pb2.VERSION_STATE_PRESENT,
}
_BY_NUMBER = {number: state for state, number in _STATES.items()}


@dataclass(frozen=True)
class ModelVersion:
    """A version as its operator sees it: reason and cause where it is refused, digests and bounds where it is served."""

    model: str
    version: str
    state: VersionState
    is_default: bool = False
    reason: str = ""
    cause: str = ""
    model_digest: str = ""
    plan_digest: str = ""
    client_spec_digest: str = ""
    max_request_bytes: int = 0
    max_key_bytes: int = 0


@dataclass(frozen=True)
class WorkerStats:
    """One worker's place: whether a process is up in it, how many were lost, and its cache of loaded keys."""

    worker: int
    up: bool = False
    lost: int = 0
    key_cache_bytes: int = 0
    key_cache_hits: int = 0
    key_cache_misses: int = 0
    key_cache_evictions: int = 0


@dataclass(frozen=True)
class ServerStats:
    """A server at one moment; counts are since its start. `not_ready` says why it should get no calls."""

    build: str
    uptime_seconds: float
    not_ready: tuple[str, ...] = ()
    calls_under_way: int = 0
    queue_length: int = 0
    queue_predicted_ms: float = 0.0
    workers: tuple[WorkerStats, ...] = ()
    key_store_bytes: int = 0
    jobs: Mapping[str, int] = field(default_factory=dict)
    calls: Mapping[str, int] = field(default_factory=dict)


def model_version_to_proto(version: ModelVersion) -> admin_pb2.ModelVersion:
    return admin_pb2.ModelVersion(**{**vars(version), "state": _STATES[version.state]})


def model_version_from_proto(message: admin_pb2.ModelVersion) -> ModelVersion:
    return ModelVersion(
        model=message.model,
        version=message.version,
        state=_BY_NUMBER.get(message.state, VersionState.PRESENT),
        is_default=message.is_default,
        reason=message.reason,
        cause=message.cause,
        model_digest=message.model_digest,
        plan_digest=message.plan_digest,
        client_spec_digest=message.client_spec_digest,
        max_request_bytes=message.max_request_bytes,
        max_key_bytes=message.max_key_bytes,
    )


def worker_stats_to_proto(stats: WorkerStats) -> admin_pb2.WorkerStats:
    return admin_pb2.WorkerStats(**vars(stats))


def worker_stats_from_proto(message: admin_pb2.WorkerStats) -> WorkerStats:
    return WorkerStats(
        worker=message.worker,
        up=message.up,
        lost=message.lost,
        key_cache_bytes=message.key_cache_bytes,
        key_cache_hits=message.key_cache_hits,
        key_cache_misses=message.key_cache_misses,
        key_cache_evictions=message.key_cache_evictions,
    )


def server_stats_to_proto(stats: ServerStats) -> admin_pb2.StatsResponse:
    return admin_pb2.StatsResponse(**{**vars(stats), "workers": [worker_stats_to_proto(w) for w in stats.workers]})


def server_stats_from_proto(message: admin_pb2.StatsResponse) -> ServerStats:
    return ServerStats(
        build=message.build,
        uptime_seconds=message.uptime_seconds,
        not_ready=tuple(message.not_ready),
        calls_under_way=message.calls_under_way,
        queue_length=message.queue_length,
        queue_predicted_ms=message.queue_predicted_ms,
        workers=tuple(worker_stats_from_proto(w) for w in message.workers),
        key_store_bytes=message.key_store_bytes,
        jobs=dict(message.jobs),
        calls=dict(message.calls),
    )
