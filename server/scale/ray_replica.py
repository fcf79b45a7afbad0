"""What runs in a Ray cluster: one Ray Serve replica, which owns one worker process as the local pool does.

The replica itself never parses a client's bytes. Its worker process does, and may only answer in frames of JSON: replies of
Ray are pickled, and a worker that was taken over must not be able to run code in the front door by them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, cast

from ..engine.frames import Job, Outcome
from ..engine.worker_process import WorkerLost, WorkerProcess, WorkerSettings
from ..observe.logs import event, set_up

__all__ = ["Replica"]

_PROGRESS_SECONDS = 0.25  # between two looks at how far a job is
_KEY_SETS = 64  # that Ray knows a replica to hold; what fits is the worker's to decide, by bytes

serve: Any = import_module("ray.serve")
F = TypeVar("F", bound=Callable[..., Any])


def _multiplexed(function: F) -> F:
    return cast(F, serve.multiplexed(max_num_models_per_replica=_KEY_SETS)(function))


class Replica:
    """One worker. `do` yields ("progress", record), at the end ("outcome", JSON, reply) or ("lost", cause, before start)."""

    def __init__(self, settings: WorkerSettings) -> None:
        set_up(settings.log_level)
        self._settings = settings
        self._turn = asyncio.Lock()  # a job that was given up may still be on its way out
        self._process: WorkerProcess | None = _start(settings)
        self._files: dict[str, Path] = {}  # of the key sets that the worker holds, by name
        self._missing: set[str] = set()  # of them, those that were not there at the last look

    async def pids(self) -> list[int]:
        """Of this replica and of its worker."""
        return [os.getpid(), *([self._process.pid] if self._process else [])]

    async def check_health(self) -> None:
        """Ray calls this every two seconds. The worker drops key sets whose files are gone at two looks: deleted, evicted
        or expired ones. One look is not enough, as a commit moves the file that was checked."""
        missing = {name for name, path in self._files.items() if await asyncio.to_thread(_is_gone, path)}
        gone, self._missing = missing & self._missing, missing
        process = self._process
        if process is None or not [name for name in gone if process.forget(name)] or self._turn.locked():
            return  # a busy worker drops them by itself
        async with self._turn:
            job = Job(0, "forget", "", time.monotonic())
            self._learn(job, await asyncio.get_running_loop().run_in_executor(None, _call, process, job, b""))

    def _learn(self, job: Job, result: tuple[Outcome, bytes] | WorkerLost) -> None:
        """Which key sets the worker holds after a job."""
        held = [] if isinstance(result, WorkerLost) else result[0].resident
        files = {**self._files, **({job.key_sha256: Path(job.key_path)} if job.key_path else {})}
        self._files = {name: path for name, path in files.items() if name in held}

    @_multiplexed
    async def hold(self, key_sha256: str) -> str:
        """Ray then prefers this replica for calls with these keys."""
        return key_sha256

    async def do(self, record: dict[str, Any], payload: bytes) -> AsyncIterator[tuple[Any, ...]]:
        """Do one job. `record` is a Job's, with the seconds that are left in the place of its deadline."""
        deadline = time.monotonic() + record["deadline"]  # machines do not share their clocks
        job = Job(**{**record, "deadline": deadline})
        if job.key_sha256:
            await self.hold(serve.get_multiplexed_model_id() or job.key_sha256)
        async with self._turn:
            process = await self._living()
            call = asyncio.get_running_loop().run_in_executor(None, _call, process, job, payload)
            try:
                while not call.done():
                    await asyncio.wait({call}, timeout=_PROGRESS_SECONDS)
                    progress = process.progress(job.number)
                    if progress is not None and not call.done():
                        yield "progress", asdict(progress)
                result = call.result()
            finally:
                await self._give_up(process, job.number, call)
                self._learn(job, call.result())
            if isinstance(result, WorkerLost):
                yield "lost", str(result), result.before_start
            else:
                yield "outcome", json.dumps(asdict(result[0])), result[1]

    async def _give_up(self, process: WorkerProcess, number: int, call: asyncio.Future[Any]) -> None:
        """Leave the worker free: it stops at the next HE operation, or is replaced."""
        if call.done():
            return
        process.cancel(number)
        await asyncio.wait({call}, timeout=self._settings.engine.cancel_grace_seconds)
        if not call.done():
            process.kill()
            await asyncio.wait({call})

    async def _living(self) -> WorkerProcess:
        if self._process is not None and self._process.alive:
            return self._process
        if self._process is not None:
            event("worker lost", worker=self._process.pid)
            lost, self._process = self._process, None
            await asyncio.to_thread(lost.close)
        self._process = await asyncio.to_thread(_start, self._settings)
        return self._process

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # also of a replica whose worker did not start
            if self._process is not None:
                self._process.close()


def _is_gone(path: Path) -> bool:
    """Whether a file is no more. One that cannot be looked at now is there."""
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _start(settings: WorkerSettings) -> WorkerProcess:
    process = WorkerProcess(settings)
    try:
        process.wait_until_up()
    except BaseException:
        process.kill()
        process.close()
        raise
    return process


def _call(process: WorkerProcess, job: Job, payload: bytes) -> tuple[Outcome, bytes] | WorkerLost:
    try:
        return process.call(job, payload)
    except WorkerLost as error:
        return error
