"""Jobs: evaluations that outlive the call that asked for them, for models that take long.

A job belongs to a tenant and is addressed by a random id that is stored as its hash. An equal request with an equal
request_id is the same job; as the first id is known to nobody here any more, it gets one more. Results wait on disk
within a budget and for a time; after a restart finished jobs are as they were, and unfinished ones have failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from typing import Any

from he_runtime.errors import Cancelled, Reason
from protos.native import JobState, JobStatus, SubmittedJob

from ..engine.engine import Engine
from ..engine.ticket import Evaluation, Ticket
from ..errors import ServiceError, storage_failure
from ..identity.tenant import current_caller
from ..interceptors import failure_of
from ..observe.events import JobsChanged, Observer, nobody
from ..observe.logs import event
from .job import Job, hash_of, to_forget
from .job_spool import LOST_MESSAGE, JobRecord, JobSpool
from .settings import JobsConfig
from .window import RequestKey

__all__ = ["Jobs"]

_MAX_IDS = 8  # of one job: the latest stay good
_BUSY_SECONDS = 5.0


class Jobs:
    """All jobs of this server. Belongs to one event loop; the disk is waited for in threads."""

    def __init__(self, config: JobsConfig, spool: JobSpool, engine: Engine, observer: Observer = nobody) -> None:
        self._config = config
        self._spool = spool
        self._engine = engine
        self._observer = observer
        self._jobs: dict[str, Job] = {}  # by name, the oldest first
        self._by_hash: dict[str, Job] = {}
        self._by_request: dict[tuple[str, ...], Job] = {}
        self._submitting = asyncio.Lock()
        self._watchers: Counter[str] = Counter()
        self._closing = False

    async def open(self) -> None:
        """Take up what the last server left."""
        for record in await asyncio.to_thread(self._spool.open, time.time()):
            job = Job(record)
            job.over.set()
            self._add(job)
        await self._forget(0)
        self._tell()

    def _add(self, job: Job) -> None:
        record = job.record
        self._jobs[record.name] = job
        self._by_hash.update(dict.fromkeys(record.id_hashes, job))
        if record.request:
            self._by_request[record.request] = job

    def _tell(self) -> None:
        by_state = Counter(job.state.value for job in self._jobs.values())
        self._observer(JobsChanged({state.value: by_state[state.value] for state in JobState}))

    # Submitting

    async def submit(
        self,
        key: RequestKey | None,
        begin: Callable[[float], Awaitable[Ticket]],
        reply_of: Callable[[Evaluation], bytes],
    ) -> SubmittedJob:
        """A job of the current caller. `begin` takes the seconds that it may last and brings it into the engine's queue,
        `reply_of` serializes its reply. `key` is None for a request without an id, which is always a new job.

        Raises SERVER_BUSY and LIMIT_EXCEEDED as the engine does, and for too many jobs.
        """
        request = key.parts if key is not None else ()
        async with self._submitting:  # equal requests at once are one job, too
            known = self._by_request.get(request) if request else None
            if known is None or known.state in (JobState.FAILED, JobState.CANCELLED):
                self._check_numbers(current_caller().tenant)
                await self._forget(1)
                known = self._start(await begin(self._config.max_seconds), request, reply_of)
                await self._learn_layers(known)
            return SubmittedJob(await self._issue_id(known), self._status(known))

    def _check_numbers(self, tenant: str) -> None:
        unfinished = [job for job in self._jobs.values() if not job.state.is_final]
        own = sum(job.record.tenant == tenant for job in unfinished)
        if self._closing or len(unfinished) >= self._config.max_jobs:
            raise ServiceError(
                "cannot take the job: got a server that has as many as it can; try again later",
                Reason.SERVER_BUSY,
                subject="jobs",
                retry_after_seconds=_BUSY_SECONDS,
            )
        if own >= self._config.max_per_tenant:
            raise ServiceError(
                f"cannot take the job: got {own} unfinished jobs of the tenant, need fewer than {self._config.max_per_tenant}; "
                "try again when one has finished",
                Reason.LIMIT_EXCEEDED,
                subject="quota.jobs",
                retry_after_seconds=_BUSY_SECONDS,
            )

    def _start(self, ticket: Ticket, request: tuple[str, ...], reply_of: Callable[[Evaluation], bytes]) -> Job:
        tenant = current_caller().tenant
        job = Job(JobRecord(secrets.token_hex(16), tenant, (), request, time.time()), ticket)
        self._add(job)
        job.task = asyncio.get_running_loop().create_task(self._run(job, ticket, reply_of))
        self._tell()
        return job

    async def _learn_layers(self, job: Job) -> None:
        assert job.ticket is not None
        cost = await self._engine.pricing.cost(job.ticket.model)
        if cost is not None:
            job.layer_names = tuple(layer.name for layer in cost.layers)
            job.layer_ms = tuple(layer.predicted_ms for layer in cost.layers)

    async def _issue_id(self, job: Job) -> str:
        """A new id for the job, once its hash is on disk; the caller's own may have been lost on the way to it."""
        job_id = secrets.token_hex(16)
        hashes = (*job.record.id_hashes, hash_of(job_id))
        for old in hashes[:-_MAX_IDS]:
            self._by_hash.pop(old, None)
        job.record = replace(job.record, id_hashes=hashes[-_MAX_IDS:])
        self._by_hash[hashes[-1]] = job
        try:
            await self._save(job)
        except OSError:
            if job.task is not None and len(hashes) == 1:  # nobody can ask for it
                job.task.cancel()
            raise
        return job_id

    async def _save(self, job: Job, result: bytes | None = None, **changes: Any) -> None:
        """Record changes of a job, on disk first; one at a time, so that a newer record is never written over."""
        async with job.saving:
            await asyncio.to_thread(self._spool.save, replace(job.record, **changes), result)
            job.record = replace(job.record, **changes)

    # Running

    async def _run(self, job: Job, ticket: Ticket, reply_of: Callable[[Evaluation], bytes]) -> None:
        """To its end, whatever that is; nothing is raised here, as nobody waits."""
        try:
            result = reply_of(await self._engine.result(ticket))
            done: dict[str, Any] = {"state": JobState.SUCCEEDED, "ended": time.time(), "result_bytes": len(result)}
            await asyncio.shield(self._save(job, result, **done))  # a cancellation now finds it written, or not begun
        except asyncio.CancelledError:
            if self._closing:
                await self._end(job, JobState.FAILED, Reason.WORKER_LOST.value, LOST_MESSAGE)
            else:
                await self._end(job, JobState.CANCELLED)
        except Exception as error:
            failure, incident = failure_of(storage_failure(error) or error)
            if incident:
                event("incident", level=logging.ERROR, error=error, incident=incident, method="job")
            await self._end(job, JobState.FAILED, failure.reason, failure.message)
        job.ticket, job.task = None, None
        job.over.set()
        await self._forget(0)
        self._tell()

    async def _end(self, job: Job, state: JobState, reason: str = "", message: str = "") -> None:
        changes: dict[str, Any] = {"state": state, "ended": time.time(), "reason": reason, "message": message}
        try:
            await asyncio.shield(self._save(job, **changes))
        except OSError as error:  # known in memory, and after a restart as lost
            event("job record not written", level=logging.ERROR, cause=str(error))
            job.record = replace(job.record, **changes)

    async def _forget(self, room: int) -> None:
        gone = to_forget([job.record for job in self._jobs.values()], self._config, time.time(), room)
        for record in gone:
            self._remove(self._jobs[record.name])
        for record in gone:
            await asyncio.to_thread(self._spool.drop, record.name)

    def _remove(self, job: Job) -> None:
        del self._jobs[job.record.name]
        for hashed in job.record.id_hashes:
            self._by_hash.pop(hashed, None)
        if self._by_request.get(job.record.request) is job:
            del self._by_request[job.record.request]

    # Asking

    def _find(self, job_id: str) -> Job:
        """The current caller's job. Another tenant's looks like none."""
        job = self._by_hash.get(hash_of(job_id))
        if job is None or job.record.tenant != current_caller().tenant or job.is_past(self._config.result_ttl_seconds):
            raise _unknown()
        return job

    def _status(self, job: Job) -> JobStatus:
        ratio = self._engine.pricing.of("infer", job.ticket.model)[0].ratio if job.ticket is not None else None
        return job.status(ratio)

    async def watch(self, job_id: str) -> AsyncGenerator[JobStatus, None]:
        """The job's status at once, whenever it has changed (time alone is no change), and at its end."""
        job, tenant = self._find(job_id), current_caller().tenant
        if (
            self._watchers.total() >= self._config.max_watchers
            or self._watchers[tenant] >= self._config.max_tenant_watchers
        ):
            raise ServiceError(
                f"cannot watch the job: got {self._watchers[tenant]} watchers of the tenant, need fewer; try again later",
                Reason.SERVER_BUSY,
                subject="watchers",
                retry_after_seconds=_BUSY_SECONDS,
            )
        self._watchers[tenant] += 1
        try:
            last: JobStatus | None = None
            while True:
                status = self._status(job)
                if last is None or replace(status, seconds_left=None) != replace(last, seconds_left=None):
                    yield status
                if status.state.is_final:
                    return
                last = status
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._config.watch_seconds):
                        await job.over.wait()
        finally:
            self._watchers[tenant] -= 1

    async def cancel(self, job_id: str) -> JobStatus:
        """Stop a job; its status then, which is another one where it had just ended."""
        job = self._find(job_id)
        if job.task is not None:
            job.task.cancel()
            await job.over.wait()
        return self._status(job)

    async def result(self, job_id: str) -> bytes:
        """The serialized reply. Raises JOB_UNFINISHED, CANCELLED, or the error that the job failed with."""
        job = self._find(job_id)
        record = job.record
        match job.state:
            case JobState.SUCCEEDED:
                try:
                    return await asyncio.to_thread(self._spool.result, record.name)
                except FileNotFoundError:  # forgotten meanwhile
                    raise _unknown() from None
            case JobState.FAILED:
                raise ServiceError(record.message, Reason(record.reason), subject="job")
            case JobState.CANCELLED:
                raise Cancelled("cannot get the result: the job was cancelled; try submitting it again")
        raise ServiceError(
            "cannot get the result: got a job that is not finished; try watching it",
            Reason.JOB_UNFINISHED,
            subject="job",
            retry_after_seconds=min(60.0, max(1.0, self._status(job).seconds_left or _BUSY_SECONDS)),
        )

    # Ending

    async def idle(self) -> None:
        """Return once no job is unfinished."""
        while (job := next((j for j in self._jobs.values() if j.task is not None), None)) is not None:
            await job.over.wait()

    async def close(self) -> None:
        """Give up what is unfinished: it is recorded as lost, to be submitted again."""
        self._closing = True
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _unknown() -> ServiceError:
    return ServiceError(
        "cannot find the job: got an id that is unknown, or forgotten since; try submitting it again",
        Reason.JOB_UNKNOWN,
        subject="job",
    )
