"""The engine: admits jobs, hands them to worker processes, and keeps those alive.

Admission is bounded: beyond `max_queue` waiting jobs a caller is turned away at once and told when to come back. A
job goes to an idle worker that already holds its keys, if there is one. A caller that cancels or runs out of time is
answered at once; its worker stops at the next HE operation, and is replaced if it does not stop within a grace period.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from he_runtime.errors import Cancelled, Reason, SecateurError

from ..config import EngineConfig, LimitsConfig
from ..errors import ConfigError, ServiceError
from ..observe.events import Observer, nobody
from ..observe.logs import event
from .frames import Job, JobKind, Outcome
from .reports import Reports
from .runtime import ModelDescription
from .worker_process import WorkerLost, WorkerProcess, WorkerSettings

__all__ = ["Engine", "Evaluation"]

_RESPAWN_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)  # pause before each attempt to replace a lost worker
_FIRST_GUESS_SECONDS = 1.0
_LOST_RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class Evaluation:
    """A finished job."""

    reply: bytes = field(repr=False)
    queue_ms: float
    outcome: Outcome


@dataclass
class _Ticket:
    """A job between its caller and a worker."""

    job: Job
    payload: bytes
    future: asyncio.Future[tuple[Outcome, bytes]]
    created: float
    started: float = 0.0
    slot: _Slot | None = None


@dataclass
class _Slot:
    """A place for one worker process, which changes over time."""

    process: WorkerProcess
    number: int
    resident: frozenset[str] = frozenset()
    running: int = 0
    own: deque[_Ticket] = field(default_factory=deque)  # jobs that only this worker can do, ahead of the others


class Engine:
    """Worker processes behind a bounded queue. All methods belong to one event loop."""

    def __init__(
        self, engine: EngineConfig, limits: LimitsConfig, log_level: str = "info", observer: Observer = nobody
    ) -> None:
        self._reports = Reports(observer)
        self._engine = engine
        self._limits = limits
        self._settings = WorkerSettings(engine, limits.max_message_bytes, log_level)
        self._threads = ThreadPoolExecutor(engine.workers, thread_name_prefix="secateur-worker")
        self._slots: list[_Slot] = []
        self._idle: list[_Slot] = []
        self._starting: set[WorkerProcess] = set()
        self._waiting: deque[_Ticket] = deque()
        self._preloaded: list[ModelDescription] = []
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._typical_seconds = _FIRST_GUESS_SECONDS
        self._stopping = False

    @property
    def pids(self) -> list[int]:
        """The worker processes that are up."""
        return [slot.process.pid for slot in self._slots]

    @property
    def workers_up(self) -> int:
        """Workers that can take jobs, now or once they are through with theirs."""
        return sum(slot.process.alive for slot in self._slots)

    async def start(self, preload: list[ModelDescription]) -> None:
        """Start all workers and load `preload` in each; ConfigError when a worker does not come up."""
        self._preloaded = preload[: self._engine.models_per_worker]
        try:
            await asyncio.gather(*(self._start_slot(number) for number in range(self._engine.workers)))
        except (WorkerLost, OSError) as error:
            await self.stop()
            raise ConfigError(f"cannot start a worker: {error}; see its messages above") from error
        self._idle = list(self._slots)
        self._dispatch()

    async def _start_slot(self, number: int) -> None:
        self._slots.append(_Slot(await self._spawn(), number))
        self._reports.worker_up(number)

    async def _spawn(self) -> WorkerProcess:
        """A new worker that has loaded what is preloaded, also after a loss: or callers of little patience would see a
        large model loaded on their time, give up, and have the worker replaced for it, again and again."""
        loop = asyncio.get_running_loop()
        process = WorkerProcess(self._settings)
        self._starting.add(process)
        try:
            await loop.run_in_executor(self._threads, process.wait_until_up)
            await self._preload(process)
        except BaseException:
            process.kill()
            process.close()
            raise
        finally:
            self._starting.discard(process)
        event("worker up", worker=process.pid)
        return process

    async def _preload(self, process: WorkerProcess) -> None:
        """Load models ahead of the first request. One that does not load stays, and answers with its error."""
        for model in self._preloaded:
            job = Job(
                next(self._numbers), "load", str(model.directory), time.monotonic() + self._limits.max_evaluate_seconds
            )
            outcome, _ = await asyncio.get_running_loop().run_in_executor(self._threads, process.call, job, b"")
            event(
                "model loaded",
                worker=process.pid,
                model=model.name,
                version=model.version,
                reason=outcome.reason,
                ms=round(outcome.load_ms),
            )

    async def preload(self, models: list[ModelDescription]) -> None:
        """Load models in every worker, between two jobs, and in every one that starts later.

        Raises the typed error of the first worker that cannot load one, which is then not loaded in later ones either.
        """
        before = self._preloaded
        self._preloaded = [*before, *models][-self._engine.models_per_worker :]
        loop = asyncio.get_running_loop()
        tickets = []
        for model in models:
            for slot in self._slots:
                deadline = time.monotonic() + self._limits.max_evaluate_seconds
                job = Job(next(self._numbers), "load", str(model.directory), deadline)
                tickets.append(_Ticket(job, b"", loop.create_future(), time.monotonic()))
                slot.own.append(tickets[-1])
        self._dispatch()
        try:
            for outcome, _ in await asyncio.gather(*(ticket.future for ticket in tickets)):
                if outcome.reason:
                    raise _error_of(outcome)
        except SecateurError:
            self._preloaded = before
            raise

    async def submit(
        self,
        kind: JobKind,
        model: ModelDescription,
        payload: bytes,
        *,
        key_path: str,
        key_sha256: str,
        timeout_seconds: float | None,
    ) -> Evaluation:
        """Do a job within `timeout_seconds` (none: the configured maximum).

        Raises SERVER_BUSY when the queue is full, WORKER_LOST, DEADLINE_EXCEEDED, or the worker's typed error.
        """
        self._admit()
        limit = self._limits.max_evaluate_seconds
        seconds = limit if timeout_seconds is None else min(timeout_seconds, limit)
        now = time.monotonic()
        job = Job(next(self._numbers), kind, str(model.directory), now + seconds, key_path, key_sha256)
        ticket = _Ticket(job, payload, asyncio.get_running_loop().create_future(), now)
        self._waiting.append(ticket)
        self._dispatch()
        try:
            async with asyncio.timeout(seconds):
                outcome, reply = await ticket.future
        except TimeoutError:
            raise Cancelled(
                f"cannot finish: got a deadline of {seconds:.1f} s, which has passed; try a later one",
                Reason.DEADLINE_EXCEEDED,
            ) from None
        finally:
            self._abandon(ticket)
        if outcome.reason:
            raise _error_of(outcome)
        done = Evaluation(reply, (ticket.started - ticket.created) * 1e3, outcome)
        if kind == "infer":
            self._reports.evaluated(model, done.queue_ms, outcome)
        return done

    def _admit(self) -> None:
        if self._stopping or (len(self._waiting) >= self._limits.max_queue and not self._idle):
            seconds = self._typical_seconds * (len(self._waiting) + 1) / max(1, len(self._slots))
            raise ServiceError(
                f"cannot take the request: got {len(self._waiting)} waiting, need fewer than {self._limits.max_queue}; "
                f"try again in about {seconds:.1f} s",
                Reason.SERVER_BUSY,
                subject="queue",
                retry_after_seconds=seconds,
            )

    def _abandon(self, ticket: _Ticket) -> None:
        """The caller is gone: take the job off the queue, or ask its worker to stop."""
        if ticket.slot is None:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._report_queue()
        elif ticket.slot.running == ticket.job.number:
            slot, process, number = ticket.slot, ticket.slot.process, ticket.job.number
            process.cancel(number)

            def replace_if_stuck() -> None:
                if slot.running == number and slot.process is process:
                    event("worker ignores cancellation", level=logging.ERROR, worker=process.pid)
                    process.kill()

            asyncio.get_running_loop().call_later(self._engine.cancel_grace_seconds, replace_if_stuck)

    def _dispatch(self) -> None:
        for slot in [s for s in self._idle if s.own]:
            self._begin(slot.own.popleft(), slot)
        while self._waiting and self._idle:
            ticket = self._waiting.popleft()
            self._begin(ticket, next((s for s in self._idle if ticket.job.key_sha256 in s.resident), self._idle[0]))
        self._report_queue()

    def _report_queue(self) -> None:
        self._reports.queue(len(self._waiting), len(self._waiting) * self._typical_seconds * 1e3)

    def _begin(self, ticket: _Ticket, slot: _Slot) -> None:
        self._idle.remove(slot)
        ticket.slot, ticket.started, slot.running = slot, time.monotonic(), ticket.job.number
        task = asyncio.get_running_loop().create_task(self._serve(slot, ticket))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, slot: _Slot, ticket: _Ticket) -> None:
        """Run one ticket on one slot, and leave the slot idle with a living worker."""
        loop = asyncio.get_running_loop()
        try:
            outcome, reply = await loop.run_in_executor(self._threads, slot.process.call, ticket.job, ticket.payload)
        except WorkerLost as error:
            slot.running = 0
            self._reports.worker_lost(slot.number)
            event("worker lost", level=logging.ERROR, worker=slot.process.pid, cause=str(error), job=ticket.job.kind)
            if error.before_start and not ticket.future.done():
                ticket.slot = None
                (slot.own if ticket.job.kind == "load" else self._waiting).appendleft(ticket)
                self._dispatch()
            elif not ticket.future.done():
                ticket.future.set_exception(_lost())
            await self._replace(slot)
        else:
            slot.running, slot.resident = 0, frozenset(outcome.resident)
            self._reports.job_done(slot.number, outcome)
            if not outcome.reason:
                self._typical_seconds += 0.2 * (time.monotonic() - ticket.started - self._typical_seconds)
            if not ticket.future.done():
                ticket.future.set_result((outcome, reply))
        if not self._stopping:
            self._idle.append(slot)
            self._dispatch()

    async def _replace(self, slot: _Slot) -> None:
        """Put a new process into a slot, with growing pauses while it does not come up."""
        slot.process.kill()
        await asyncio.to_thread(slot.process.close)
        slot.resident = frozenset()
        for pause in itertools.chain(_RESPAWN_SECONDS, itertools.repeat(_RESPAWN_SECONDS[-1])):
            await asyncio.sleep(pause)
            if self._stopping:
                return
            try:
                slot.process = await self._spawn()
                self._reports.worker_up(slot.number)
                return
            except (WorkerLost, OSError) as error:  # OSError: no memory, processes or descriptors left
                event("worker does not start", level=logging.ERROR, cause=str(error))

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no more jobs, give running ones `drain_seconds`, then end every worker."""
        self._stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=drain_seconds or 0.01)
        for process in (*self._starting, *(slot.process for slot in self._slots if slot.running)):
            process.kill()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for ticket in (*self._waiting, *(ticket for slot in self._slots for ticket in slot.own)):
            if not ticket.future.done():
                ticket.future.set_exception(_lost())
        await asyncio.gather(*(asyncio.to_thread(slot.process.close) for slot in self._slots))
        self._slots, self._idle = [], []
        self._threads.shutdown()


def _lost() -> ServiceError:
    return ServiceError(
        "cannot finish: got no answer, for the worker process was lost; try again",
        Reason.WORKER_LOST,
        retry_after_seconds=_LOST_RETRY_SECONDS,
    )


def _error_of(outcome: Outcome) -> SecateurError:
    """The worker's error, to be raised here. A reason without a message is an internal one, already logged there."""
    if not outcome.message:
        return SecateurError(f"job {outcome.number} failed in its worker, whose log says how", Reason.INTERNAL)
    return ServiceError(outcome.message, Reason(outcome.reason))
