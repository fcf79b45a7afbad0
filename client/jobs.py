"""Jobs as a program holds them: evaluations at the server that outlive the call, this connection and this program."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing

from protos.native import JobStatus

from . import job_core
from .core import Core
from .job_core import KnownJob
from .port import drive
from .prediction import Prediction
from .retry import Budget

__all__ = ["AsyncJob", "Job"]


class _Described:
    def __init__(self, core: Core, known: KnownJob, budget: Budget) -> None:
        self._core = core
        self._known = known
        self._budget = budget

    @property
    def id(self) -> str:
        """A capability: whoever holds it, and is of the same tenant, may watch, cancel and collect the job. Another one after the
        job was submitted again."""
        return self._known.record.job_id

    @property
    def name(self) -> str:
        """What the job is called here, made from a digest of its first id; it opens nothing and may be shown."""
        return self._known.record.name

    @property
    def model(self) -> str:
        return self._known.record.model

    @property
    def version(self) -> str:
        return self._known.record.version

    @property
    def created(self) -> float:
        """When it was submitted, in seconds since the epoch."""
        return self._known.record.created

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.model!r}, {self.version!r})"


class Job(_Described):
    """A job of a Client. `timeout` is in seconds from the call; without one, waiting has no end, only each request has.

    The job that `submit` returned keeps its encrypted input until its result is had. Where the server has lost it before
    that, by a restart or with a worker, `watch`, `status` and `result` submit it again, at most three times and never more
    often than the client's `retries`; the request keeps its id, so a server that knows it does not evaluate it twice. A
    job that a later run of a program found by its name has no input, and fails with WORKER_LOST or JOB_UNKNOWN.
    """

    def watch(self, timeout: float | None = None) -> Generator[JobStatus, None, None]:
        """The job's state at once, whenever it changes (layer i of n, seconds left), at last the final one.

        Goes on through a server's restart, from the beginning where that lost the job. Raises ServerError, DeadlineExceeded when the time is over.
        """
        found = job_core.statuses(self._core, self._known, self._budget.waiting(timeout))
        try:
            while True:
                try:
                    status = drive(found.__anext__())
                except StopAsyncIteration:
                    return
                yield status
        finally:
            drive(found.aclose())

    def status(self) -> JobStatus:
        """The job's state now."""
        watched = self.watch(self._budget.seconds)
        try:
            return next(watched)
        finally:
            watched.close()

    def result(self, timeout: float | None = None) -> Prediction:
        """Wait for the job's end and decrypt its result; may be called again while the server keeps it.

        Raises DeadlineExceeded when it is not finished in time (it goes on), ServerError with the reason of a failed job,
        CANCELLED for a cancelled one, JOB_UNKNOWN for a result that the server has dropped; KeyStoreError without the key.
        """
        return drive(job_core.result(self._core, self._known, self._budget.waiting(timeout)))

    def cancel(self) -> JobStatus:
        """Stop the job between two operations; of no effect on one that has ended. Its state then."""
        return drive(job_core.cancel(self._core, self._known, self._budget))


class AsyncJob(_Described):
    """A job of an AsyncClient; as Job."""

    async def watch(self, timeout: float | None = None) -> AsyncGenerator[JobStatus, None]:
        """As Job.watch, for `async for`."""
        async with aclosing(job_core.statuses(self._core, self._known, self._budget.waiting(timeout))) as found:
            async for status in found:
                yield status

    async def status(self) -> JobStatus:
        """The job's state now."""
        async with aclosing(self.watch(self._budget.seconds)) as found:
            return await anext(found)

    async def result(self, timeout: float | None = None) -> Prediction:
        """As Job.result."""
        return await job_core.result(self._core, self._known, self._budget.waiting(timeout))

    async def cancel(self) -> JobStatus:
        """As Job.cancel."""
        return await job_core.cancel(self._core, self._known, self._budget)
