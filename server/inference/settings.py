"""Settings of jobs: evaluations that outlive the call that asked for them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["JobsConfig"]

_GIB = 1 << 30


@dataclass(frozen=True)
class JobsConfig:
    """Jobs and their results in `state`/jobs. How many may wait, and for how long in all, is admission's to say."""

    budget_bytes: int = _GIB  # results; the oldest of the tenant that fills most of it give way
    result_ttl_seconds: float = 86400.0  # how long what became of a job is known
    max_jobs: int = 1024  # known at once, finished ones included
    max_per_tenant: int = 64  # of one tenant, unfinished
    max_seconds: float = 21600.0  # from submission to result
    watch_seconds: float = 0.5  # between two looks at a job's progress
    max_watchers: int = 64  # WatchJob calls at once
    max_tenant_watchers: int = 16  # of one tenant
