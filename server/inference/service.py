"""InferenceService: pass ciphertexts to a worker and its reply back, neither of them read here."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from he_runtime.errors import Reason
from protos import convert
from protos.gen.secateur.v1 import inference_pb2, inference_pb2_grpc
from protos.native import InferenceCall, InferenceReply, ServerInfo, Timings

from ..engine.engine import Engine
from ..engine.runtime import ModelDescription
from ..errors import ServiceError
from ..keys.store import KeyStore, StoredKeys
from ..models.repository import Repository
from .window import RequestKey, RequestWindow

__all__ = ["InferenceServicer"]

_MAX_REQUEST_ID = 128


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Looks up model and keys, and submits to the engine within the caller's deadline."""

    def __init__(
        self, repository: Repository, store: KeyStore, engine: Engine, window: RequestWindow, server: ServerInfo
    ) -> None:
        self._repository = repository
        self._store = store
        self._engine = engine
        self._window = window
        self._server = server

    async def Infer(self, request: inference_pb2.InferRequest, context: Any) -> inference_pb2.InferResponse:
        call = convert.inference_call_from_proto(request)
        model = self._repository.for_call(call.model, call.version, call.client_spec_digest)
        _check_call(call, model)
        keys = await asyncio.to_thread(self._store.find, call.key_set_id)
        if keys.params_digest != model.params_digest:
            raise ServiceError(
                f"cannot use this key set: got one made for parameters {keys.params_digest[:12]}, need {model.params_digest[:12]}; "
                "try uploading keys made from the current client spec",
                Reason.KEY_PARAMETERS_DIFFER,
                subject="key_set",
            )
        seconds = context.time_remaining()
        if not call.request_id:
            return convert.inference_reply_to_proto(await self._evaluate(call, model, keys, seconds))
        content = await asyncio.to_thread(lambda: hashlib.sha256(call.ciphertexts).hexdigest())
        key = RequestKey(call.request_id, keys.sha256, model.plan_digest, content)
        reply = await self._window.share(key, seconds, lambda: self._evaluate(call, model, keys, None))
        return convert.inference_reply_to_proto(reply)

    async def _evaluate(
        self, call: InferenceCall, model: ModelDescription, keys: StoredKeys, seconds: float | None
    ) -> InferenceReply:
        done = await self._engine.submit(
            "infer", model, call.ciphertexts, key_path=str(keys.path), key_sha256=keys.sha256, timeout_seconds=seconds
        )
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
