"""The worker processes: started, loaded with models, and replaced when they are lost."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ..config import EngineConfig
from ..errors import ConfigError
from ..observe.logs import event
from ..scale.ray_workers import RayWorker, RayWorkers
from .frames import Job
from .reports import Reports
from .runtime import ModelDescription
from .worker_process import WorkerLost, WorkerProcess, WorkerSettings

__all__ = ["Pool", "Slot"]

T = TypeVar("T")
R = TypeVar("R")
_RESPAWN_SECONDS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)  # pause before each attempt to replace a lost worker


@dataclass(eq=False)
class Slot(Generic[T]):
    """A place for one worker process, which changes over time; or for one call at a time to a Ray cluster."""

    process: WorkerProcess | RayWorker
    number: int
    resident: frozenset[str] = frozenset()
    running: int = 0
    own: deque[T] = field(default_factory=deque)  # work that only this worker can do, ahead of the rest


class Pool(Generic[T]):
    """As many slots as workers are configured, each with a living worker or on its way to one.

    `numbers` gives jobs their numbers; `load_seconds` is the longest that loading one model may take.
    """

    def __init__(
        self,
        engine: EngineConfig,
        settings: WorkerSettings,
        numbers: Iterator[int],
        load_seconds: float,
        reports: Reports,
    ) -> None:
        self._reports = reports
        self._engine = engine
        self._settings = settings
        self.numbers = numbers
        self._load_seconds = load_seconds
        self._ray = RayWorkers(settings) if engine.workers_backend == "ray" else None
        self._starting: set[WorkerProcess | RayWorker] = set()
        self.threads = ThreadPoolExecutor(engine.workers, thread_name_prefix="secateur-worker")
        self.slots: list[Slot[T]] = []
        self.preloaded: list[ModelDescription] = []
        self.stopping = False

    async def start(self) -> None:
        """Start all workers, each with what is preloaded; ConfigError when one does not come up."""
        try:
            await asyncio.gather(*(self._start_slot(number) for number in range(self._engine.workers)))
        except (WorkerLost, OSError) as error:
            raise ConfigError(f"cannot start a worker: {error}; see its messages above") from error

    async def _start_slot(self, number: int) -> None:
        self.slots.append(Slot(await self._spawn(), number))
        self._reports.worker_up(number)

    async def _spawn(self) -> WorkerProcess | RayWorker:
        """A new worker that has loaded what is preloaded, also after a loss: or callers of little patience would see a
        large model loaded on their time, give up, and have the worker replaced for it, again and again."""
        process = WorkerProcess(self._settings) if self._ray is None else self._ray.worker()
        self._starting.add(process)
        try:
            await self.in_thread(process.wait_until_up)
            await self._preload(process)
        except BaseException:
            process.kill()
            process.close()
            raise
        finally:
            self._starting.discard(process)
        event("worker up", worker=process.pid)
        return process

    async def in_thread(self, function: Callable[..., R], *arguments: object) -> R:
        """Wait for a worker in a thread of its own."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)

    def load_job(self, model: ModelDescription) -> Job:
        return Job(next(self.numbers), "load", str(model.directory), time.monotonic() + self._load_seconds)

    async def _preload(self, process: WorkerProcess | RayWorker) -> None:
        """Load models ahead of the first request. One that does not load stays, and answers with its error."""
        for model in self.preloaded:
            outcome, _ = await self.in_thread(process.call, self.load_job(model), b"")
            event(
                "model loaded",
                worker=process.pid,
                model=model.name,
                version=model.version,
                reason=outcome.reason,
                ms=round(outcome.load_ms),
            )

    async def replace(self, slot: Slot[T]) -> None:
        """Put a new process into a slot, with growing pauses while it does not come up."""
        slot.process.kill()
        await asyncio.to_thread(slot.process.close)
        slot.resident = frozenset()
        for pause in itertools.chain(_RESPAWN_SECONDS, itertools.repeat(_RESPAWN_SECONDS[-1])):
            await asyncio.sleep(pause)
            if self.stopping:
                return
            try:
                slot.process = await self._spawn()
                self._reports.worker_up(slot.number)
                return
            except (WorkerLost, OSError) as error:  # OSError: no memory, processes or descriptors left
                event("worker does not start", level=logging.ERROR, cause=str(error))

    def kill_busy(self) -> None:
        """End the workers that are at work or on their way up."""
        for process in (*self._starting, *(slot.process for slot in self.slots if slot.running)):
            process.kill()

    async def close(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(slot.process.close) for slot in self.slots))
        self.slots = []
        if self._ray is not None:
            await asyncio.to_thread(self._ray.close)
        self.threads.shutdown()
