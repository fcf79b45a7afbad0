"""InferenceService: pass ciphertexts to a worker and its reply back, neither of them read here; now, or as a job."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from he_runtime.errors import Reason
from protos import convert
from protos.gen.secateur.v1 import inference_pb2, inference_pb2_grpc
from protos.native import InferenceCall, InferenceReply, ServerInfo, Timings

from ..engine.engine import Engine
from ..engine.runtime import ModelDescription
from ..engine.ticket import Evaluation, Ticket
from ..errors import ServiceError
from ..identity.tenant import current_caller
from ..keys.store import KeyStore, StoredKeys
from ..models.repository import Repository
from .jobs import Jobs
from .window import RequestKey, RequestWindow

__all__ = ["InferenceServicer"]

_MAX_REQUEST_ID = 128


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Looks up model and keys, and submits to the engine within the caller's deadline."""

    def __init__(
        self,
        repository: Repository,
        store: KeyStore,
        engine: Engine,
        window: RequestWindow,
        server: ServerInfo,
        jobs: Jobs,
    ) -> None:
        self._jobs = jobs
        self._repository = repository
        self._store = store
        self._engine = engine
        self._window = window
        self._server = server

    async def Infer(self, request: inference_pb2.InferRequest, context: Any) -> inference_pb2.InferResponse:
        call = convert.inference_call_from_proto(request)
        seconds = context.time_remaining()
        model = self._model(call)
        if not call.request_id or not self._window.may_know(current_caller().tenant, call.request_id):
            self._engine.check_room(model, len(call.ciphertexts), seconds)
        keys = await self._keys(call, model)
        key = await _request_key(call, model, keys)
        if key is None:
            return convert.inference_reply_to_proto(await self._evaluate(call, model, keys, seconds))
        # Who asked first may leave while others wait: its deadline is no reason to stop, only one not to begin.
        reply = await self._window.share(key, seconds, lambda: self._evaluate(call, model, keys, None, seconds))
        return convert.inference_reply_to_proto(reply)

    async def SubmitJob(self, request: inference_pb2.SubmitJobRequest, context: Any) -> inference_pb2.SubmitJobResponse:
        call = convert.inference_call_from_proto(request.call)
        model = self._model(call)
        keys = await self._keys(call, model)

        async def begin(seconds: float) -> Ticket:
            where = str(keys.path), keys.name
            return await self._engine.begin("infer", model, call.ciphertexts, *where, seconds=seconds, lane="job")

        def reply_of(done: Evaluation) -> bytes:
            return convert.inference_reply_to_proto(self._reply(model, done)).SerializeToString()

        key = await _request_key(call, model, keys)
        return convert.submitted_job_to_proto(await self._jobs.submit(key, begin, reply_of))

    async def WatchJob(
        self, request: inference_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[inference_pb2.WatchJobResponse]:
        async with aclosing(self._jobs.watch(request.job_id)) as statuses:
            async for status in statuses:
                yield inference_pb2.WatchJobResponse(status=convert.job_status_to_proto(status))

    async def CancelJob(self, request: inference_pb2.CancelJobRequest, context: Any) -> inference_pb2.CancelJobResponse:
        status = await self._jobs.cancel(request.job_id)
        return inference_pb2.CancelJobResponse(status=convert.job_status_to_proto(status))

    async def GetResult(self, request: inference_pb2.GetResultRequest, context: Any) -> inference_pb2.GetResultResponse:
        reply = inference_pb2.InferResponse.FromString(await self._jobs.result(request.job_id))
        return inference_pb2.GetResultResponse(reply=reply)

    def _model(self, call: InferenceCall) -> ModelDescription:
        """The call's model, after everything about the call has been checked that needs neither keys nor an HE library."""
        model = self._repository.for_call(call.model, call.version, call.client_spec_digest)
        _check_call(call, model)
        return model

    async def _keys(self, call: InferenceCall, model: ModelDescription) -> StoredKeys:
        keys = await asyncio.to_thread(self._store.find, call.key_set_id)
        if keys.params_digest != model.params_digest:
            raise ServiceError(
                f"cannot use this key set: got one made for parameters {keys.params_digest[:12]}, need {model.params_digest[:12]}; "
                "try uploading keys made from the current client spec",
                Reason.KEY_PARAMETERS_DIFFER,
                subject="key_set",
            )
        return keys

    async def _evaluate(
        self,
        call: InferenceCall,
        model: ModelDescription,
        keys: StoredKeys,
        seconds: float | None,
        patience: float | None = None,
    ) -> InferenceReply:
        done = await self._engine.submit(
            "infer",
            model,
            call.ciphertexts,
            key_path=str(keys.path),
            key_sha256=keys.name,
            timeout_seconds=seconds,
            patience_seconds=patience,
        )
        return self._reply(model, done)

    def _reply(self, model: ModelDescription, done: Evaluation) -> InferenceReply:
        return InferenceReply(
            ciphertexts=done.reply,
            model=model.name,
            version=model.version,
            plan_digest=model.plan_digest,
            timings=Timings(done.queue_ms, done.outcome.load_ms, done.outcome.evaluate_ms),
            counts=done.outcome.counts,
            server_build=self._server.build,
            wire_version=self._server.wire_version,
        )


async def _request_key(call: InferenceCall, model: ModelDescription, keys: StoredKeys) -> RequestKey | None:
    """What makes another request the same one as this; None where its caller did not ask for that."""
    if not call.request_id:
        return None
    content = await asyncio.to_thread(lambda: hashlib.sha256(call.ciphertexts).hexdigest())
    return RequestKey(current_caller().tenant, call.request_id, keys.sha256, model.plan_digest, content)


def _check_call(call: InferenceCall, model: ModelDescription) -> None:
    if not call.ciphertexts:
        raise ServiceError(
            "cannot infer: got no ciphertexts, need one codec object of them; try encrypting an input",
            Reason.BYTES_TRUNCATED,
            subject="ciphertexts",
        )
    if len(call.ciphertexts) > model.max_request_bytes:
        raise ServiceError(
            f"cannot infer: got {len(call.ciphertexts)} bytes of ciphertexts, need at most {model.max_request_bytes} for "
            f"{model.name} version {model.version}; try packing by the client spec",
            Reason.LIMIT_EXCEEDED,
            subject="ciphertexts",
        )
    if len(call.request_id) > _MAX_REQUEST_ID:
        raise ServiceError(
            f"cannot use the request_id: got {len(call.request_id)} characters, need at most {_MAX_REQUEST_ID}; try a UUID",
            Reason.LIMIT_EXCEEDED,
            subject="request_id",
        )
    if call.client_spec_digest and call.client_spec_digest != model.client_spec_digest:
        raise ServiceError(
            f"cannot use the input: got one packed by client spec {call.client_spec_digest[:12]!r}, need "
            f"{model.client_spec_digest[:12]} for {model.name} version {model.version}; try fetching the spec again",
            Reason.VERSION_UNKNOWN,
            subject="client_spec_digest",
        )
