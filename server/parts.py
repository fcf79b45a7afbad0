"""What a server consists of behind its ports, opened in order and closed in the opposite one."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

from protos.native import ServerInfo

from .admin.figures import Figures
from .config import ServerConfig
from .engine.engine import Engine
from .engine.runtime import Runtime, load_runtime
from .errors import ConfigError
from .gate import Gate
from .guard import Guard
from .inference.job_spool import JobSpool
from .inference.jobs import Jobs
from .keys.manifest import MAX_PIECES
from .keys.reports import KeyReports
from .keys.store import KeyStore
from .models.manager import ModelManager
from .models.repository import Repository
from .observe.events import Observer, several
from .observe.observing import Observing
from .scale import operands
from .scale.backends import problems as workers_problems
from .state.layout import open_state

__all__ = ["Parts"]

PARTING_SECONDS = 1.0  # for answers of the last calls to leave
_FRAME_BYTES = 64 << 10  # what a message holds beside its ciphertexts or its chunk


@dataclass
class Parts:
    """Everything that calls are answered with."""

    config: ServerConfig
    info: ServerInfo
    runtime: Runtime
    manager: ModelManager
    guard: Guard
    observing: Observing
    figures: Figures
    observer: Observer
    gate: Gate
    store: KeyStore
    reports: KeyReports
    engine: Engine
    jobs: Jobs

    @property
    def repository(self) -> Repository:
        return self.manager.repository

    @classmethod
    async def open(cls, config: ServerConfig, opened: contextlib.AsyncExitStack) -> Parts:
        """Verify the models, open the stores, start the workers; `opened` closes them. ConfigError where that fails."""
        runtime = _runtime(config)
        opened.callback(os.close, await asyncio.to_thread(open_state, config.state))
        manager = await asyncio.to_thread(ModelManager, config, runtime)
        info = _info(config, runtime, manager.repository)
        guard = await Guard.open(config)
        opened.push_async_callback(guard.close)
        observing = await Observing.open(config, info.build)
        opened.push_async_callback(observing.close)
        figures = Figures()
        observer = several([observing.observer, figures])
        with _state_errors(config):
            store = await asyncio.to_thread(KeyStore, config.state / "keys", config.keys)
        opened.push_async_callback(asyncio.to_thread, store.close)
        settings = replace(config.engine, operands=operands.prepare(config, manager.repository.models()))
        engine = Engine(settings, config.limits, config.log_level, observer, config.admission, runtime)
        opened.push_async_callback(engine.stop, PARTING_SECONDS)
        await engine.start(manager.repository.defaults() if config.engine.preload else [])
        store.tell_of_gone(_from_threads(engine.forget))
        manager.serve_with(engine.preload, engine.preload_later, info.max_message_bytes - _FRAME_BYTES)
        with _state_errors(config):
            jobs = Jobs(config.jobs, JobSpool(config.state / "jobs"), engine, observer)
            await jobs.open()
        opened.push_async_callback(jobs.close)
        reports = KeyReports(store, observer)
        return cls(
            config, info, runtime, manager, guard, observing, figures, observer, Gate(), store, reports, engine, jobs
        )

    def probes(self) -> dict[str, Callable[[], bool]]:
        """What must be there for calls to succeed."""
        return {"workers": lambda: self.engine.workers_up > 0, "keys": self.store.healthy}


def _from_threads(function: Callable[[str], None]) -> Callable[[str], object]:
    """`function` of this event loop, for other threads to call; they do not wait for it."""
    loop = asyncio.get_running_loop()
    return lambda name: loop.call_soon_threadsafe(function, name)


def _runtime(config: ServerConfig) -> Runtime:
    runtime = load_runtime(config.engine.runtime)
    for problem in (*workers_problems(config.engine), *runtime.problems(config.engine.backend)):
        raise ConfigError(problem)
    table = config.engine.cost_table
    if table is not None and not table.is_file():
        raise ConfigError(f"cannot use engine.cost_table = {table}: no such file; try `secateur calibrate`")
    return runtime


def _info(config: ServerConfig, runtime: Runtime, repository: Repository) -> ServerInfo:
    limits = config.limits
    return ServerInfo(
        build=_build_version(),
        wire_version=runtime.wire_version(),
        max_message_bytes=_message_bytes(config, repository),
        max_upload_bytes=limits.max_upload_bytes,
        max_chunk_bytes=limits.max_chunk_bytes,
        max_upload_pieces=MAX_PIECES,
    )


def _build_version() -> str:
    try:
        return version("secateur")
    except PackageNotFoundError:
        return "0+unknown"


def _message_bytes(config: ServerConfig, repository: Repository) -> int:
    """The largest message that the server receives: no larger than the models have use for, as callers make it allocate.

    Where models may be loaded later nobody knows theirs, and the configured limit stands.
    """
    limits = config.limits
    if config.admin.address or config.repository.poll_seconds:
        return limits.max_message_bytes
    largest = max(repository.max_request_bytes, limits.max_chunk_bytes)
    return min(limits.max_message_bytes, largest + _FRAME_BYTES)


@contextlib.contextmanager
def _state_errors(config: ServerConfig) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot use state = {config.state}: {error.strerror or error}") from error
