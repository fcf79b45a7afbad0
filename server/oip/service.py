"""GRPCInferenceService: the native services under the names that clients of other inference servers call.

Every call goes through the same interceptors, and what it asks for is asked of the native services: identity, admission,
limits, idempotency and errors are theirs. Keys are uploaded, and a model's client spec is read, by the native services.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from he_runtime.errors import Reason, SecateurError
from protos.gen.inference import open_inference_pb2 as pb
from protos.gen.inference import open_inference_pb2_grpc
from protos.gen.secateur.v1 import inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc

from . import tensors

__all__ = ["PLATFORM", "OpenInferenceServicer"]

PLATFORM = "secateur_ckks"
_SERVER = "secateur"


class OpenInferenceServicer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """`ready` says whether the server as a whole can take an inference."""

    def __init__(
        self,
        models: model_pb2_grpc.ModelServiceServicer,
        inference: inference_pb2_grpc.InferenceServiceServicer,
        build: str,
        ready: Callable[[], bool],
    ) -> None:
        self._models: Any = models
        self._inference: Any = inference
        self._build = build
        self._ready = ready

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Any) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Any) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._ready())

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Any) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=_SERVER, version=self._build)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:
        """False for a model that is not served, to this caller; other errors are errors."""
        if not self._ready():
            return pb.ModelReadyResponse(ready=False)
        try:
            await self._served(request.name, request.version, context)
        except SecateurError as error:
            if error.reason is Reason.INTERNAL:
                raise
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:
        served = await self._served(request.name, request.version, context)
        return pb.ModelMetadataResponse(
            name=served.summary.name,
            versions=served.summary.versions,
            platform=PLATFORM,
            inputs=[tensors.metadata()],
            outputs=[tensors.metadata()],
        )

    async def _served(self, name: str, version: str, context: Any) -> model_pb2.GetModelResponse:
        request = model_pb2.GetModelRequest(model=name, version=version)
        served: model_pb2.GetModelResponse = await self._models.GetModel(request, context)
        return served

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        taken = tensors.take(request)
        native = inference_pb2.InferRequest(
            model=request.model_name,
            version=request.model_version,
            ciphertexts=taken.ciphertexts,
            request_id=request.id,
            **taken.parameters,
        )
        return _response(await self._inference.Infer(native, context), request.id, raw=taken.raw)


def _response(reply: inference_pb2.InferResponse, request_id: str, *, raw: bool) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name=reply.model, model_version=reply.version, id=request_id)
    for name, text in (("plan_digest", reply.plan_digest), ("server_build", reply.server_build)):
        response.parameters[name].string_param = text
    response.parameters["wire_version"].int64_param = reply.wire_version
    for name in ("queue_ms", "load_ms", "evaluate_ms"):
        response.parameters[name].double_param = getattr(reply.timings, name)
    tensors.answer(response, reply.ciphertexts, raw=raw)
    return response
