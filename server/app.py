"""Putting the server together, and stopping it gently."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos.gen.inference import open_inference_pb2, open_inference_pb2_grpc
from protos.gen.secateur.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    keys_pb2,
    keys_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)
from protos.native import ServerInfo

from .admin.figures import Figures
from .admin.port import AdminPort
from .admin.service import AdminServicer
from .config import ServerConfig
from .connections import cut
from .engine.engine import Engine
from .engine.runtime import Runtime, load_runtime
from .errors import ConfigError
from .gate import Gate
from .guard import Guard
from .inference.job_spool import JobSpool
from .inference.jobs import Jobs
from .inference.service import InferenceServicer
from .inference.window import RequestWindow
from .interceptors import Boundary
from .keys.reports import KeyReports
from .keys.service import KeyServicer
from .keys.store import KeyStore
from .models.manager import ModelManager
from .models.repository import Repository
from .models.service import ModelServicer
from .observe import logs
from .observe.events import Observer, several
from .observe.observing import Observing
from .oip.service import OpenInferenceServicer
from .ports import open_ports
from .readiness import Readiness
from .state.layout import open_state

__all__ = ["App"]

SERVICES = (
    model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
    keys_pb2.DESCRIPTOR.services_by_name["KeyService"].full_name,
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
)
_FRAME_BYTES = 64 << 10  # what a message holds beside its ciphertexts or its chunk
_NOTICE_SECONDS = 0.05  # for those who watch the health service to hear of the end
_PARTING_SECONDS = 1.0  # for answers of the last calls to leave


def build_version() -> str:
    try:
        return version("secateur")
    except PackageNotFoundError:
        return "0+unknown"


@dataclass
class App:
    """A server that serves: `await App.start(config)`, then `await app.stop()`."""

    config: ServerConfig
    address: str
    engine: Engine
    readiness: Readiness
    manager: ModelManager
    admin_address: str
    metrics_address: str  # with the port that was chosen; empty when metrics are off
    _server: grpc.aio.Server
    _gate: Gate
    _told: asyncio.Event
    _jobs: Jobs
    _opened: contextlib.AsyncExitStack
    _tasks: list[asyncio.Task[None]]

    @classmethod
    async def start(cls, config: ServerConfig) -> App:
        """Verify the models, start the workers, open the port; ConfigError for what keeps it from serving."""
        runtime = load_runtime(config.engine.runtime)
        for problem in runtime.problems(config.engine.backend):
            raise ConfigError(problem)
        table = config.engine.cost_table
        if table is not None and not table.is_file():
            raise ConfigError(f"cannot use engine.cost_table = {table}: no such file; try `secateur calibrate`")
        async with contextlib.AsyncExitStack() as opened:
            opened.callback(os.close, await asyncio.to_thread(open_state, config.state))
            manager = await asyncio.to_thread(ModelManager, config, runtime)
            guard = await Guard.open(config)
            opened.push_async_callback(guard.close)
            observing = await Observing.open(config, build_version())
            opened.push_async_callback(observing.close)
            app = await cls._start(config, runtime, manager, observing, guard, opened)
            app._opened = opened.pop_all()  # from here on stop closes them
        return app

    @classmethod
    async def _start(
        cls,
        config: ServerConfig,
        runtime: Runtime,
        manager: ModelManager,
        observing: Observing,
        guard: Guard,
        opened: contextlib.AsyncExitStack,
    ) -> App:
        repository, figures, gate, told = manager.repository, Figures(), Gate(), asyncio.Event()
        observer = several([observing.observer, figures])
        message_bytes = _message_bytes(config, repository)
        store = await asyncio.to_thread(_open_store, config)
        opened.push_async_callback(asyncio.to_thread, store.close)
        engine = Engine(config.engine, config.limits, config.log_level, observer, config.admission, runtime)
        opened.push_async_callback(engine.stop, _PARTING_SECONDS)
        await engine.start(repository.defaults() if config.engine.preload else [])
        jobs = await _open_jobs(config, engine, observer)
        opened.push_async_callback(jobs.close)
        manager.serve_with(engine.preload, message_bytes - _FRAME_BYTES)
        probes: dict[str, Callable[[], bool]] = {"workers": lambda: engine.workers_up > 0, "keys": store.healthy}
        readiness = Readiness(SERVICES, lambda: [m.name for m in repository.summaries()], probes)
        manager.on_change = readiness.tell
        server = _make_server(config, message_bytes, observer, guard, [*observing.interceptors, gate])
        health_pb2_grpc.add_HealthServicer_to_server(readiness.servicer, server)
        reports = KeyReports(store, observer)
        _add_services(server, config, message_bytes, runtime, repository, store, engine, readiness, reports, jobs)
        address = open_ports(server, config)
        administered = await _open_admin(config, guard, observer, manager, readiness, gate, figures, told)
        if administered is not None:
            opened.push_async_callback(administered.close)
        await readiness.look()
        await server.start()
        tasks = [asyncio.create_task(readiness.watch()), asyncio.create_task(reports.watch())]
        if config.repository.poll_seconds:
            tasks.append(asyncio.create_task(manager.watch()))
        logs.event("serving", address=address, tls=config.tls.enabled, models=[m.name for m in repository.summaries()])
        return cls(
            config=config,
            address=address,
            engine=engine,
            readiness=readiness,
            manager=manager,
            admin_address=administered.address if administered else "",
            metrics_address=observing.metrics_address,
            _server=server,
            _gate=gate,
            _told=told,
            _jobs=jobs,
            _opened=opened,
            _tasks=tasks,
        )

    async def wait_until_told(self) -> None:
        """Return once an administrator asks the server to end."""
        await self._told.wait()

    async def _finished(self) -> None:
        """Return once no call and no job is under way."""
        await self._gate.empty()
        await self._jobs.idle()

    async def stop(self, at_once: asyncio.Event | None = None) -> None:
        """Report not ready, let no new calls in, let those under way finish within the drain time, then end.

        Once `at_once` is set, calls under way are given up.
        """
        logs.event("draining", seconds=self.config.drain_seconds, calls=self._gate.under_way)
        self._gate.close()
        await self.readiness.drain()
        hurry = at_once or asyncio.Event()
        waits = [asyncio.create_task(self._finished()), asyncio.create_task(hurry.wait())]
        await asyncio.wait(waits, timeout=self.config.drain_seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in (*waits, *self._tasks):
            task.cancel()
        await asyncio.gather(*waits, *self._tasks, return_exceptions=True)
        await asyncio.sleep(_NOTICE_SECONDS)
        cut([self.address, self.config.tls.mutual_address])
        if hurry.is_set():
            await self.engine.stop()
        await self._server.stop(0 if hurry.is_set() else _PARTING_SECONDS)
        await self._opened.aclose()
        logs.event("stopped")


async def _open_admin(
    config: ServerConfig,
    guard: Guard,
    observer: Observer,
    manager: ModelManager,
    readiness: Readiness,
    gate: Gate,
    figures: Figures,
    told: asyncio.Event,
) -> AdminPort | None:
    if not config.admin.address:
        return None
    servicer = AdminServicer(
        manager,
        readiness,
        gate,
        figures,
        build=build_version(),
        drain_seconds=config.drain_seconds,
        begin_drain=told.set,
        everyone_administers=config.identity.mode == "anonymous",
    )
    return await AdminPort.open(config, guard, observer, servicer)


def _open_store(config: ServerConfig) -> KeyStore:
    try:
        return KeyStore(config.state / "keys", config.keys)
    except OSError as error:
        raise ConfigError(f"cannot use state = {config.state}: {error.strerror or error}") from error


async def _open_jobs(config: ServerConfig, engine: Engine, observer: Observer) -> Jobs:
    try:
        jobs = Jobs(config.jobs, JobSpool(config.state / "jobs"), engine, observer)
        await jobs.open()
    except OSError as error:
        raise ConfigError(f"cannot use state = {config.state}: {error.strerror or error}") from error
    return jobs


def _message_bytes(config: ServerConfig, repository: Repository) -> int:
    """The largest message that the server receives: no larger than the models have use for, as callers make it allocate.

    Where models may be loaded later nobody knows theirs, and the configured limit stands.
    """
    limits = config.limits
    if config.admin.address or config.repository.poll_seconds:
        return limits.max_message_bytes
    largest = max(repository.max_request_bytes, limits.max_chunk_bytes)
    return min(limits.max_message_bytes, largest + _FRAME_BYTES)


def _make_server(
    config: ServerConfig, message_bytes: int, observer: Observer, guard: Guard, outer: list[Any]
) -> grpc.aio.Server:
    limits = config.limits
    return grpc.aio.server(
        interceptors=[*outer, Boundary(limits.receive_seconds, observer, guard)],
        maximum_concurrent_rpcs=limits.max_concurrent_rpcs,
        options=[
            ("grpc.max_receive_message_length", message_bytes),
            ("grpc.max_send_message_length", -1),  # replies are bounded where they are read from a worker
            ("grpc.max_concurrent_streams", limits.max_connection_rpcs),
            ("grpc.http2.bdp_probe", 0),  # without it a broken upload loses one chunk, with it megabytes of read-ahead
            ("grpc.so_reuseport", 0),  # a second server on the port is a mistake, not a load balancer
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
        ],
    )


def _add_services(
    server: grpc.aio.Server,
    config: ServerConfig,
    message_bytes: int,
    runtime: Runtime,
    repository: Repository,
    store: KeyStore,
    engine: Engine,
    readiness: Readiness,
    reports: KeyReports,
    jobs: Jobs,
) -> None:
    limits = config.limits
    info = ServerInfo(
        build=build_version(),
        wire_version=runtime.wire_version(),
        max_message_bytes=message_bytes,
        max_upload_bytes=limits.max_upload_bytes,
        max_chunk_bytes=limits.max_chunk_bytes,
    )
    models = ModelServicer(repository, runtime, info, config.engine.backend, config.engine.cost_table)
    keys = KeyServicer(store, repository, engine, limits, config.keys.validate_on_commit, reports)
    inference = InferenceServicer(repository, store, engine, RequestWindow(limits), info, jobs)
    model_pb2_grpc.add_ModelServiceServicer_to_server(models, server)
    keys_pb2_grpc.add_KeyServiceServicer_to_server(keys, server)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)
    open_inference = OpenInferenceServicer(models, inference, info.build, lambda: readiness.ready)
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(open_inference, server)
    if config.reflection:
        reflection.enable_server_reflection([*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
