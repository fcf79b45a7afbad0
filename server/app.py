"""Putting the server together, running it, and stopping it gently."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
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

from .config import LimitsConfig, ServerConfig
from .engine.engine import Engine
from .engine.runtime import Runtime, load_runtime
from .errors import ConfigError
from .guard import Guard
from .inference.service import InferenceServicer
from .inference.window import RequestWindow
from .interceptors import Boundary
from .keys.service import KeyServicer
from .keys.store import KeyStore
from .models.repository import Repository
from .models.service import ModelServicer
from .observe import logs
from .observe.events import Observer
from .observe.observing import Observing
from .oip.service import OpenInferenceServicer
from .ports import open_ports

__all__ = ["App", "run"]

SERVICES = (
    model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
    keys_pb2.DESCRIPTOR.services_by_name["KeyService"].full_name,
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
)
_FRAME_BYTES = 64 << 10  # what a message holds beside its ciphertexts or its chunk
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
    _server: grpc.aio.Server
    _store: KeyStore
    _health: Any
    _observing: Observing
    _guard: Guard

    @property
    def metrics_address(self) -> str:
        """Where metrics are scraped, with the port that was chosen; empty when they are off."""
        return self._observing.metrics_address

    @classmethod
    async def start(cls, config: ServerConfig) -> App:
        """Verify the models, start the workers, open the port; ConfigError for what keeps it from serving."""
        runtime = load_runtime(config.engine.runtime)
        for problem in runtime.problems(config.engine.backend):
            raise ConfigError(problem)
        table = config.engine.cost_table
        if table is not None and not table.is_file():
            raise ConfigError(f"cannot use engine.cost_table = {table}: no such file; try `secateur calibrate`")
        repository = await asyncio.to_thread(Repository.scan, config.models, runtime)
        async with contextlib.AsyncExitStack() as opened:
            guard = await Guard.open(config)
            opened.push_async_callback(guard.close)
            observing = await Observing.open(config, build_version())
            opened.push_async_callback(observing.close)
            app = await cls._start(config, runtime, repository, observing, guard)
            opened.pop_all()  # from here on stop closes them
        return app

    @classmethod
    async def _start(
        cls, config: ServerConfig, runtime: Runtime, repository: Repository, observing: Observing, guard: Guard
    ) -> App:
        message_bytes = _message_bytes(config.limits, repository)
        store = await asyncio.to_thread(_open_store, config)
        engine = Engine(config.engine, config.limits, config.log_level, observing.observer)
        try:
            await engine.start(repository.defaults() if config.engine.preload else [])
            server = _make_server(config, message_bytes, observing.observer, guard)
            checker: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs lack it
            health_pb2_grpc.add_HealthServicer_to_server(checker, server)
            _add_services(server, config, message_bytes, runtime, repository, store, engine)
            address = open_ports(server, config)
            await server.start()
        except BaseException:
            await engine.stop()
            store.close()
            raise
        for service in SERVICES:
            await checker.set(service, health_pb2.HealthCheckResponse.SERVING)
        logs.event("serving", address=address, tls=config.tls.enabled, models=[m.name for m in repository.summaries()])
        return cls(config, address, engine, server, store, checker, observing, guard)

    async def stop(self) -> None:
        """Report not serving, take no new calls, let those under way finish within the drain time, then end."""
        logs.event("draining", seconds=self.config.drain_seconds)
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self.config.drain_seconds)
        await self.engine.stop(_PARTING_SECONDS)
        await asyncio.to_thread(self._store.close)
        await self._observing.close()
        await self._guard.close()
        logs.event("stopped")


def _open_store(config: ServerConfig) -> KeyStore:
    try:
        return KeyStore(config.state / "keys", config.keys)
    except OSError as error:
        raise ConfigError(f"cannot use state = {config.state}: {error.strerror or error}") from error


def _message_bytes(limits: LimitsConfig, repository: Repository) -> int:
    """The largest message that the server receives: no larger than the models have use for, as callers make it allocate."""
    largest = max(repository.max_request_bytes, limits.max_chunk_bytes)
    return min(limits.max_message_bytes, largest + _FRAME_BYTES)


def _make_server(config: ServerConfig, message_bytes: int, observer: Observer, guard: Guard) -> grpc.aio.Server:
    limits = config.limits
    return grpc.aio.server(
        interceptors=[Boundary(limits.receive_seconds, observer, guard)],
        maximum_concurrent_rpcs=limits.max_concurrent_rpcs,
        options=[
            ("grpc.max_receive_message_length", message_bytes),
            ("grpc.max_send_message_length", -1),  # replies are bounded where they are read from a worker
            ("grpc.max_concurrent_streams", limits.max_connection_rpcs),
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
    keys = KeyServicer(store, repository, engine, limits, config.keys.validate_on_commit)
    inference = InferenceServicer(repository, store, engine, RequestWindow(limits), info)
    model_pb2_grpc.add_ModelServiceServicer_to_server(models, server)
    keys_pb2_grpc.add_KeyServiceServicer_to_server(keys, server)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)
    open_inference = OpenInferenceServicer(models, inference, info.build, lambda: bool(engine.pids))
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(open_inference, server)
    if config.reflection:
        reflection.enable_server_reflection([*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], server)


async def _serve_until_told(config: ServerConfig, on_ready: Callable[[str], None]) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    app = await App.start(config)
    try:
        on_ready(app.address)
        await told.wait()
    finally:
        await app.stop()


def run(config: ServerConfig, on_ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `on_ready` gets the address once calls are taken.

    Raises ConfigError for what keeps the configuration from serving.
    """
    logs.set_up(config.log_level)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve_until_told(config, on_ready))
