"""AdminService: what an operator may do to a running server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from he_runtime.errors import Reason
from protos import admin as native
from protos.admin import ModelVersion, ServerStats, VersionState
from protos.gen.secateur.v1 import admin_pb2, admin_pb2_grpc

from ..engine.runtime import ModelDescription
from ..errors import ServiceError
from ..gate import Gate
from ..identity.tenant import current_caller
from ..models.manager import ModelManager
from ..models.repository import natural_order
from ..observe.logs import event
from ..readiness import Readiness
from .figures import Figures

__all__ = ["AdminServicer"]


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Every method first checks that the caller may administer, where callers have credentials at all.

    `begin_drain` asks the server to end as SIGTERM does; `drain_seconds` is what calls under way then have left.
    """

    def __init__(
        self,
        manager: ModelManager,
        readiness: Readiness,
        gate: Gate,
        figures: Figures,
        *,
        build: str,
        drain_seconds: float,
        begin_drain: Callable[[], None],
        everyone_administers: bool,
    ) -> None:
        self._manager = manager
        self._readiness = readiness
        self._gate = gate
        self._figures = figures
        self._build = build
        self._drain_seconds = drain_seconds
        self._begin_drain = begin_drain
        self._everyone = everyone_administers
        self._started = time.monotonic()

    def _require_admin(self, action: str, **facts: Any) -> None:
        caller = current_caller()
        if not (self._everyone or caller.admin):
            raise ServiceError(
                f"cannot {action}: got a credential without the administrator's right, need one with it; try the server's operator",
                Reason.PERMISSION_DENIED,
                subject="admin",
            )
        event("administered", action=action, tenant=caller.tenant, subject=caller.subject, **facts)

    async def ListVersions(
        self, request: admin_pb2.ListVersionsRequest, context: Any
    ) -> admin_pb2.ListVersionsResponse:
        self._require_admin("list versions")
        present = await asyncio.to_thread(self._manager.present)
        return admin_pb2.ListVersionsResponse(versions=map(native.model_version_to_proto, self._versions(present)))

    def _versions(self, present: set[tuple[str, str]]) -> list[ModelVersion]:
        repository = self._manager.repository
        known = {(m.name, m.version): self._served(m) for m in repository.models()}
        for b in repository.broken:
            refused = ModelVersion(
                b.name, b.version, VersionState.REFUSED, reason=b.error.reason.value, cause=b.error.message
            )
            known.setdefault((b.name, b.version), refused)
        for name, version in present:
            known.setdefault((name, version), ModelVersion(name, version, VersionState.PRESENT))
        return sorted(known.values(), key=lambda v: (v.model, natural_order(v.version)))

    def _served(self, model: ModelDescription) -> ModelVersion:
        return ModelVersion(
            model=model.name,
            version=model.version,
            state=VersionState.SERVED,
            is_default=self._manager.repository.default_version(model.name) == model.version,
            model_digest=model.model_digest,
            plan_digest=model.plan_digest,
            client_spec_digest=model.client_spec_digest,
            max_request_bytes=model.max_request_bytes,
            max_key_bytes=model.max_key_bytes,
        )

    async def LoadModel(self, request: admin_pb2.LoadModelRequest, context: Any) -> admin_pb2.LoadModelResponse:
        self._require_admin("load a model", model=request.model[:64], version=request.version[:64])
        model = await self._manager.load(request.model, request.version, keep_default=request.keep_default)
        return admin_pb2.LoadModelResponse(version=native.model_version_to_proto(self._served(model)))

    async def UnloadModel(self, request: admin_pb2.UnloadModelRequest, context: Any) -> admin_pb2.UnloadModelResponse:
        self._require_admin("unload a model", model=request.model[:64], version=request.version[:64])
        await self._manager.unload(request.model, request.version)
        return admin_pb2.UnloadModelResponse()

    async def SetDefault(self, request: admin_pb2.SetDefaultRequest, context: Any) -> admin_pb2.SetDefaultResponse:
        self._require_admin("set the default", model=request.model[:64], version=request.version[:64])
        summary = await self._manager.set_default(request.model, request.version)
        return admin_pb2.SetDefaultResponse(version=summary.default_version)

    async def Drain(self, request: admin_pb2.DrainRequest, context: Any) -> admin_pb2.DrainResponse:
        self._require_admin("drain the server")
        self._begin_drain()
        return admin_pb2.DrainResponse(calls_under_way=self._gate.under_way, drain_seconds=self._drain_seconds)

    async def Stats(self, request: admin_pb2.StatsRequest, context: Any) -> admin_pb2.StatsResponse:
        self._require_admin("read statistics")
        figures = self._figures
        stats = ServerStats(
            build=self._build,
            uptime_seconds=time.monotonic() - self._started,
            not_ready=self._readiness.problems,
            calls_under_way=self._gate.under_way,
            queue_length=figures.queue_length,
            queue_predicted_ms=figures.queue_predicted_ms,
            workers=figures.workers,
            key_store_bytes=figures.key_store_bytes,
            jobs=figures.jobs,
            calls=figures.calls,
        )
        return native.server_stats_to_proto(stats)
