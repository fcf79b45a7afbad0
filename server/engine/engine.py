"""The engine: prices jobs, admits them, hands them to worker processes, and answers their callers.

Who waits and who comes next is admission's to say (server.engine.admission); the processes are the pool's. A caller that
cancels or runs out of time is answered at once; its worker stops at the next HE operation, and is replaced if it does
not stop within a grace period.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from contextvars import Context

from he_runtime.errors import SecateurError

from ..config import EngineConfig, LimitsConfig
from ..identity.tenant import current_caller
from ..observe.events import Observer, nobody
from ..observe.logs import event, of_call
from .admission import Admission, Load
from .everywhere import forget_keys, load_models
from .fair import Lane
from .frames import Job, JobKind
from .pool import Pool, Slot
from .pricing import Pricing
from .refusals import error_of, past_deadline, stopping, worker_lost
from .reports import Reports
from .runtime import ModelDescription, Runtime
from .settings import AdmissionConfig
from .ticket import Evaluation, Ticket, ticket_of
from .worker_process import WorkerLost, WorkerSettings

__all__ = ["Engine", "Evaluation", "Ticket"]


class Engine:
    """Worker processes behind admission. All methods belong to one event loop."""

    def __init__(
        self,
        engine: EngineConfig,
        limits: LimitsConfig,
        log_level: str = "info",
        observer: Observer = nobody,
        admission: AdmissionConfig | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self._reports = Reports(observer)
        self._engine = engine
        self._limits = limits
        self._numbers = itertools.count(1)
        settings = WorkerSettings(engine, limits.max_message_bytes, log_level)
        self._pool: Pool[Ticket] = Pool(engine, settings, self._numbers, limits.max_evaluate_seconds, self._reports)
        self._idle: list[Slot[Ticket]] = []
        self._admission: Admission[Ticket] = Admission(
            admission or AdmissionConfig(), engine.workers, limits.max_queue, time.monotonic
        )
        self.pricing = Pricing(engine, runtime)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def pids(self) -> list[int]:
        """The worker processes that are up on this machine."""
        return [slot.process.pid for slot in self._pool.slots if slot.process.pid]

    @property
    def workers_up(self) -> int:
        """Workers that can take jobs, now or once they are through with theirs."""
        return sum(slot.process.alive for slot in self._pool.slots)

    @property
    def load(self) -> Load:
        """What waits and runs, in predicted milliseconds and bytes."""
        return self._admission.load()

    async def start(self, preload: list[ModelDescription]) -> None:
        """Start all workers and load `preload` in each; ConfigError when a worker does not come up, then `stop` it."""
        self._pool.preloaded = preload[: self._engine.models_per_worker]
        await self._pool.start()
        self._idle = list(self._pool.slots)
        self._dispatch()

    async def preload(self, models: list[ModelDescription]) -> None:
        """Load models in every worker, between two jobs, and in every one that starts later.

        Raises the typed error of the first worker that cannot load one, which is then not loaded in later ones either.
        """
        before = self._pool.preloaded
        self._pool.preloaded = [*before, *models][-self._engine.models_per_worker :]
        tickets = load_models(self._pool, models)
        self._dispatch()
        try:
            for outcome, _ in await asyncio.gather(*(ticket.future for ticket in tickets)):
                if outcome.reason:
                    raise error_of(outcome)
        except SecateurError:
            self._pool.preloaded = before
            raise

    def preload_later(self, models: list[ModelDescription]) -> None:
        """What workers that start from now on load first, in the place of whatever they would have."""
        self._pool.preloaded = models[: self._engine.models_per_worker]

    def forget(self, name: str) -> None:
        """Have workers drop a key set that is no more, after the evaluation under way where that uses it."""
        forget_keys(self._pool, name)
        self._dispatch()

    async def submit(
        self,
        kind: JobKind,
        model: ModelDescription,
        payload: bytes,
        *,
        key_path: str,
        key_sha256: str,
        timeout_seconds: float | None,
        patience_seconds: float | None = None,
    ) -> Evaluation:
        """Do a job within `timeout_seconds` (none: the configured maximum).

        Admission alone looks at `patience_seconds`, of a caller whose leaving does not end the job. Raises what
        `begin` and `result` raise.
        """
        seconds = min(self._limits.max_evaluate_seconds, math.inf if timeout_seconds is None else timeout_seconds)
        patience = timeout_seconds if patience_seconds is None else patience_seconds
        ticket = await self.begin(kind, model, payload, key_path, key_sha256, seconds=seconds, patience=patience)
        return await self.result(ticket)

    async def begin(
        self,
        kind: JobKind,
        model: ModelDescription,
        payload: bytes,
        key_path: str,
        key_sha256: str,
        *,
        seconds: float,
        patience: float | None = None,
        lane: Lane = "call",
    ) -> Ticket:
        """Price a job of the current caller and let it wait for a worker; `result` must be awaited for it then.

        Raises SERVER_BUSY (a full queue) or LIMIT_EXCEEDED (a quota), both with a time to come back at, and
        DEADLINE_EXCEEDED for less `patience` (seconds) than such a job is known to take.
        """
        started = time.monotonic()
        await self.pricing.learn(kind, model)
        if self._pool.stopping:
            raise stopping()
        price, floor_ms = self.pricing.of(kind, model)
        job = Job(next(self._numbers), kind, str(model.directory), started + seconds, key_path, key_sha256, of_call())
        ticket = ticket_of(job, payload, model)
        ticket.price_ms, ticket.estimate_ms = price.ms, price.estimate_ms
        ticket.entry, displaced = self._admission.admit(
            ticket,
            tenant=current_caller().tenant,
            price_ms=price.ms,
            payload_bytes=len(payload),
            lane=lane,
            key=key_sha256,
            floor_ms=floor_ms,
            seconds=patience,
            idle=bool(self._idle),
        )
        for other in displaced:
            if not other.item.future.done():
                other.item.future.set_exception(self._admission.busy(other))
        self._dispatch()
        return ticket

    def check_room(self, model: ModelDescription, payload_bytes: int, patience: float | None) -> None:
        """Raise what `begin` would raise now for a call of the current caller, before its keys are looked up."""
        price, floor_ms = self.pricing.of("infer", model)
        if price.estimate_ms is not None or price.ratio is not None:
            self._admission.check(
                tenant=current_caller().tenant,
                price_ms=price.ms,
                payload_bytes=payload_bytes,
                floor_ms=floor_ms,
                seconds=patience,
                idle=bool(self._idle),
            )

    async def result(self, ticket: Ticket) -> Evaluation:
        """The job's result, at its deadline at the latest; whoever stops waiting stops the job.

        Raises SERVER_BUSY when it had to leave the queue, WORKER_LOST, DEADLINE_EXCEEDED, or the worker's typed error.
        """
        seconds = ticket.job.deadline - ticket.created
        try:
            async with asyncio.timeout(ticket.job.deadline - time.monotonic()):
                outcome, reply = await ticket.future
        except TimeoutError:
            raise past_deadline(seconds) from None
        finally:
            self._abandon(ticket)
        if outcome.reason:
            raise error_of(outcome)
        done = Evaluation(reply, (ticket.started - ticket.created) * 1e3, outcome, ticket.price_ms)
        if ticket.job.kind == "infer":
            self._reports.evaluated(ticket.model, done.queue_ms, outcome, ticket.estimate_ms)
        return done

    def _abandon(self, ticket: Ticket) -> None:
        """The caller is gone: take the job off the queue, or ask its worker to stop."""
        if ticket.entry is not None and ticket.slot is None:
            self._admission.withdraw(ticket.entry)
            self._report_queue()
        elif ticket.slot is not None and ticket.slot.running == ticket.job.number:
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
        while (taken := self._admission.take([slot.resident for slot in self._idle])) is not None:
            entry, place = taken
            self._begin(entry.item, self._idle[place])
        self._report_queue()

    def _report_queue(self) -> None:
        load = self._admission.load()
        self._reports.queue(load.waiting, load.waiting_ms)

    def _begin(self, ticket: Ticket, slot: Slot[Ticket]) -> None:
        self._idle.remove(slot)
        ticket.slot, ticket.started, slot.running = slot, time.monotonic(), ticket.job.number
        # In its own caller's context, and not in that of whoever made the slot free: logs name the right one.
        task = asyncio.get_running_loop().create_task(self._serve(slot, ticket), context=ticket.context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, slot: Slot[Ticket], ticket: Ticket) -> None:
        """Run one ticket on one slot, and leave the slot idle with a living worker."""
        try:
            outcome, reply = await self._pool.in_thread(slot.process.call, ticket.job, ticket.payload)
        except WorkerLost as error:
            slot.running = 0
            self._reports.worker_lost(slot.number)
            event("worker lost", level=logging.ERROR, worker=slot.process.pid, cause=str(error), job=ticket.job.kind)
            self._settle_lost(slot, ticket, error.before_start)
            replacing = self._pool.replace(slot)
            await asyncio.get_running_loop().create_task(replacing, context=Context())  # on nobody's behalf
        else:
            slot.running, slot.resident = 0, frozenset(outcome.resident)
            self._reports.job_done(slot.number, outcome)
            self._finish(ticket)
            self.pricing.measured(ticket.job.kind, ticket.model, outcome)
            if not ticket.future.done():
                ticket.future.set_result((outcome, reply))
        if not self._pool.stopping:
            self._idle.append(slot)
            self._dispatch()

    def _finish(self, ticket: Ticket) -> None:
        if ticket.entry is not None:
            self._admission.finish(ticket.entry, (time.monotonic() - ticket.started) * 1e3)

    def _settle_lost(self, slot: Slot[Ticket], ticket: Ticket, before_start: bool) -> None:
        """A job that was not begun goes to another worker, or to the next one in its slot; any other has failed."""
        if not before_start or ticket.future.done():
            self._finish(ticket)
            if not ticket.future.done():
                ticket.future.set_exception(worker_lost())
            return
        ticket.slot = None
        if ticket.entry is None:
            slot.own.appendleft(ticket)
        else:
            self._admission.put_back(ticket.entry)
            self._dispatch()

    async def stop(self, drain_seconds: float = 0.0) -> None:
        """Take no more jobs, give running ones `drain_seconds`, then end every worker."""
        self._pool.stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=drain_seconds or 0.01)
        self._pool.kill_busy()
        if self._tasks:
            await asyncio.wait(self._tasks)
        own = [ticket for slot in self._pool.slots for ticket in slot.own]
        for ticket in (*self._admission.items(), *own):
            if not ticket.future.done():
                ticket.future.set_exception(worker_lost())
        self._idle = []
        await self._pool.close()
