"""Settings of admission: the queues before the workers, and what each tenant may ask of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from ..errors import ConfigError

__all__ = ["AdmissionConfig", "TenantQuota"]

_MIB = 1 << 20


@dataclass(frozen=True)
class TenantQuota:
    """One tenant's own quotas, `[admission.tenants.NAME]`; 0 stands for what everybody has (see AdmissionConfig)."""

    weight: float = 0.0
    queue_share: float = 0.0
    max_running: int = 0
    ms_per_minute: float = 0.0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not 0 <= value < 1 << 62:
                raise ConfigError(f"cannot use the quota {f.name} = {value}: need a non-negative number")
        if self.queue_share > 1:
            raise ConfigError(f"cannot use the quota queue_share = {self.queue_share}: need at most 1, the whole queue")


@dataclass(frozen=True)
class AdmissionConfig:
    """The queues before the workers. Milliseconds are predicted milliseconds of one worker.

    Calls and jobs wait in queues of their own. The first to wait is always taken, so that a price above the whole
    budget can be paid; `limits.max_queue` bounds the number of calls that wait.
    """

    max_queue_ms: float = 120_000.0  # of calls that wait
    max_queue_bytes: int = 256 * _MIB  # payloads of calls that wait
    max_jobs_ms: float = 14_400_000.0  # of jobs that wait
    max_jobs_bytes: int = 256 * _MIB
    max_jobs: int = 256  # that wait
    job_workers: int = 0  # of them busy with jobs at once; 0: all but one, and at least one
    affinity_ms: float = 500.0  # how far a request may go ahead of its turn to a worker that holds its keys
    weight: float = 1.0  # of a tenant without one of its own: its share against the others'
    queue_share: float = 1.0  # of the queues that one tenant may fill
    max_running: int = 0  # of one tenant's requests at once; 0: no limit
    ms_per_minute: float = 0.0  # of evaluation for one tenant, a minute's worth of which may be saved up; 0: no limit
    tenants: Mapping[str, TenantQuota] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.queue_share <= 1:
            raise ConfigError(
                f"cannot use admission.queue_share = {self.queue_share}: need more than 0 and at most 1, the whole queue"
            )

    def quota(self, tenant: str) -> TenantQuota:
        """What holds for `tenant`: its own figures where it has some, else everybody's."""
        everybody = TenantQuota(self.weight, self.queue_share, self.max_running, self.ms_per_minute)
        own = self.tenants.get(tenant)
        if own is None:
            return everybody
        return replace(everybody, **{name: value for name, value in vars(own).items() if value})
