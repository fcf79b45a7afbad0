"""Putting the server together, and stopping it gently."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

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

from .admin.port import AdminPort
from .admin.service import AdminServicer
from .config import ServerConfig
from .connections import cut
from .engine.engine import Engine
from .inference.service import InferenceServicer
from .inference.window import RequestWindow
from .interceptors import Boundary
from .keys.service import KeyServicer
from .models.service import ModelServicer
from .observe import logs
from .oip.service import OpenInferenceServicer
from .parts import PARTING_SECONDS, Parts
from .ports import open_ports
from .readiness import Readiness

__all__ = ["App"]

SERVICES = (
    model_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
    keys_pb2.DESCRIPTOR.services_by_name["KeyService"].full_name,
    inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
)
_NOTICE_SECONDS = 0.05  # for those who watch the health service to hear of the end


@dataclass
class App:
    """A server that serves: `await App.start(config)`, then `await app.stop()`."""

    config: ServerConfig
    address: str
    admin_address: str
    metrics_address: str  # with the port that was chosen; empty when metrics are off
    engine: Engine
    _parts: Parts
    _readiness: Readiness
    _server: grpc.aio.Server
    _told: asyncio.Event
    _opened: contextlib.AsyncExitStack
    _tasks: list[asyncio.Task[None]]

    @classmethod
    async def start(cls, config: ServerConfig) -> App:
        """Verify the models, start the workers, open the port; ConfigError for what keeps it from serving."""
        async with contextlib.AsyncExitStack() as opened:
            parts = await Parts.open(config, opened)
            app = await cls._serve(config, parts, opened)
            app._opened = opened.pop_all()  # from here on stop closes them
        return app

    @classmethod
    async def _serve(cls, config: ServerConfig, parts: Parts, opened: contextlib.AsyncExitStack) -> App:
        repository, told = parts.repository, asyncio.Event()
        readiness = Readiness(SERVICES, lambda: [m.name for m in repository.summaries()], parts.probes())
        parts.manager.on_change = readiness.tell
        server = _make_server(parts)
        _add_services(server, parts, readiness)
        address = open_ports(server, config)
        admin_address = await _open_admin(parts, readiness, told, opened)
        await readiness.look()
        await server.start()
        tasks = [asyncio.create_task(readiness.watch()), asyncio.create_task(parts.reports.watch())]
        if config.repository.poll_seconds:
            tasks.append(asyncio.create_task(parts.manager.watch()))
        logs.event("serving", address=address, tls=config.tls.enabled, models=[m.name for m in repository.summaries()])
        metrics = parts.observing.metrics_address
        return cls(config, address, admin_address, metrics, parts.engine, parts, readiness, server, told, opened, tasks)

    async def wait_until_told(self) -> None:
        """Return once an administrator asks the server to end."""
        await self._told.wait()

    async def _finished(self) -> None:
        """Return once no call and no job is under way."""
        await self._parts.gate.empty()
        await self._parts.jobs.idle()

    async def stop(self, at_once: asyncio.Event | None = None) -> None:
        """Report not ready, let no new calls in, let those under way finish within the drain time, then end.

        Once `at_once` is set, calls under way are given up.
        """
        logs.event("draining", seconds=self.config.drain_seconds, calls=self._parts.gate.under_way)
        self._parts.gate.close()
        await self._readiness.drain()
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
        await self._server.stop(0 if hurry.is_set() else PARTING_SECONDS)
        await self._opened.aclose()
        logs.event("stopped")


def _make_server(parts: Parts) -> grpc.aio.Server:
    limits = parts.config.limits
    boundary = Boundary(limits.receive_seconds, parts.observer, parts.guard)
    return grpc.aio.server(
        interceptors=[*parts.observing.interceptors, parts.gate, boundary],
        maximum_concurrent_rpcs=limits.max_concurrent_rpcs,
        options=[
            ("grpc.max_receive_message_length", parts.info.max_message_bytes),
            ("grpc.max_send_message_length", -1),  # replies are bounded where they are read from a worker
            ("grpc.max_concurrent_streams", limits.max_connection_rpcs),
            ("grpc.http2.bdp_probe", 0),  # without it a broken upload loses one chunk, with it megabytes of read-ahead
            ("grpc.so_reuseport", 0),  # a second server on the port is a mistake, not a load balancer
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
        ],
    )


def _add_services(server: grpc.aio.Server, parts: Parts, readiness: Readiness) -> None:
    config, info, repository, store, engine = parts.config, parts.info, parts.repository, parts.store, parts.engine
    models = ModelServicer(repository, parts.runtime, info, config.engine.backend, config.engine.cost_table)
    keys = KeyServicer(store, repository, engine, config.limits, config.keys.validate_on_commit, parts.reports)
    inference = InferenceServicer(repository, store, engine, RequestWindow(config.limits), info, parts.jobs)
    model_pb2_grpc.add_ModelServiceServicer_to_server(models, server)
    keys_pb2_grpc.add_KeyServiceServicer_to_server(keys, server)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)
    open_inference = OpenInferenceServicer(models, inference, info.build, lambda: readiness.ready)
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(open_inference, server)
    health_pb2_grpc.add_HealthServicer_to_server(readiness.servicer, server)
    if config.reflection:
        reflection.enable_server_reflection([*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME], server)


async def _open_admin(
    parts: Parts, readiness: Readiness, told: asyncio.Event, opened: contextlib.AsyncExitStack
) -> str:
    """Open the administrator's port where there is one; its address, or nothing."""
    config = parts.config
    if not config.admin.address:
        return ""
    servicer = AdminServicer(
        parts.manager,
        readiness,
        parts.gate,
        parts.figures,
        build=parts.info.build,
        drain_seconds=config.drain_seconds,
        begin_drain=told.set,
        everyone_administers=config.identity.mode == "anonymous",
    )
    port = await AdminPort.open(config, parts.guard, parts.observer, servicer)
    opened.push_async_callback(port.close)
    return port.address
