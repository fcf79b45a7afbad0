"""ModelService: what is served, what a client needs, what it will cost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from protos import convert
from protos.gen.secateur.v1 import model_pb2, model_pb2_grpc
from protos.native import CostEstimate, ModelListing, ServedModel, ServerInfo

from ..engine.runtime import Runtime
from .repository import Repository

__all__ = ["ModelServicer"]


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Answers from the repository; nothing here touches a worker."""

    def __init__(
        self, repository: Repository, runtime: Runtime, server: ServerInfo, backend: str, cost_table: Path | None
    ) -> None:
        self._repository = repository
        self._runtime = runtime
        self._server = server
        self._backend = backend
        self._cost_table = cost_table

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: Any) -> model_pb2.ListModelsResponse:
        return convert.model_listing_to_proto(ModelListing(tuple(self._repository.summaries()), self._server))

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.GetModelResponse:
        model = self._repository.get(request.model, request.version)
        served = ServedModel(
            summary=self._repository.summary(model.name),
            version=model.version,
            client_spec=model.client_spec,
            client_spec_digest=model.client_spec_digest,
            model_digest=model.model_digest,
            plan_digest=model.plan_digest,
            server=self._server,
        )
        return convert.served_model_to_proto(served)

    async def EstimateCost(
        self, request: model_pb2.EstimateCostRequest, context: Any
    ) -> model_pb2.EstimateCostResponse:
        model = self._repository.get(request.model, request.version)
        cost = await asyncio.to_thread(self._runtime.estimate, model, self._backend, self._cost_table)
        estimate = CostEstimate(
            model=model.name,
            version=model.version,
            predicted_ms=cost.predicted_ms,
            up_bytes=cost.up_bytes,
            down_bytes=cost.down_bytes,
            key_bytes=cost.key_bytes,
            counts=cost.counts,
            dense_counts=cost.dense_counts,
            table_name=cost.table_name,
            low_ms=cost.low_ms,
            high_ms=cost.high_ms,
            confidence=cost.confidence,
            layers=cost.layers,
            peak_bytes=cost.peak_bytes,
            keys=cost.keys,
            levels_left=cost.levels_left,
            error_bound=cost.error_bound,
        )
        return convert.cost_estimate_to_proto(estimate)
