"""The gRPC channel of a client: TLS, limits, deadlines, retries, and typed errors instead of RpcError."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from he_runtime.errors import Reason
from protos import convert
from protos.gen.secateur.v1 import inference_pb2_grpc, keys_pb2, keys_pb2_grpc, model_pb2, model_pb2_grpc
from protos.native import (
    CostEstimate,
    InferenceCall,
    InferenceReply,
    KeySetInfo,
    ModelListing,
    ServedModel,
    UploadInfo,
    UploadOffer,
)
from protos.status import Failure, from_rpc_error

from .credentials import TokenSource
from .errors import NotAuthenticated, NotPermitted, ServerError, ServerUnreachable
from .tracing import trace_metadata

__all__ = ["Transport"]

_ATTEMPTS = 4
_BACKOFF_SECONDS = 0.2
_MAX_WAIT_SECONDS = 10.0
_CONTROL_SECONDS = 30.0  # deadline of calls that evaluate nothing
_MAX_TEXT_CHARS = 400
_KINDS: dict[grpc.StatusCode, type[ServerError]] = {
    grpc.StatusCode.UNAUTHENTICATED: NotAuthenticated,
    grpc.StatusCode.PERMISSION_DENIED: NotPermitted,
}


class Transport:
    """Typed calls to one server. Idempotent ones are retried with backoff, and only while it is UNAVAILABLE.

    A call whose token is refused is made once more where another token can be had: the server refuses before it reads.
    Infer is idempotent by its request id. What moves an upload on is not retried here: `upload` asks again where the
    server stands.
    """

    def __init__(
        self, channel: grpc.Channel, address: str, *, timeout_seconds: float, token: TokenSource | None = None
    ) -> None:
        self.address = address
        self._channel = channel
        self._token = token
        self._timeout = timeout_seconds
        self._control_timeout = min(_CONTROL_SECONDS, timeout_seconds)
        self._models = model_pb2_grpc.ModelServiceStub(channel)
        self._keys = keys_pb2_grpc.KeyServiceStub(channel)
        self._inference = inference_pb2_grpc.InferenceServiceStub(channel)

    def close(self) -> None:
        self._channel.close()

    def list_models(self) -> ModelListing:
        reply = self._call("list models", self._models.ListModels, model_pb2.ListModelsRequest())
        return convert.model_listing_from_proto(reply)

    def get_model(self, model: str, version: str) -> ServedModel:
        request = model_pb2.GetModelRequest(model=model, version=version)
        return convert.served_model_from_proto(self._call(f"get model {model!r}", self._models.GetModel, request))

    def estimate(self, model: str, version: str) -> CostEstimate:
        request = model_pb2.EstimateCostRequest(model=model, version=version)
        reply = self._call(f"estimate model {model!r}", self._models.EstimateCost, request)
        return convert.cost_estimate_from_proto(reply)

    def create_upload(self, offer: UploadOffer) -> UploadInfo | KeySetInfo:
        reply = self._call("offer the keys", self._keys.CreateUpload, convert.upload_offer_to_proto(offer), attempts=1)
        return convert.offer_reply_from_proto(reply)

    def get_upload(self, upload_id: str) -> UploadInfo:
        request = keys_pb2.GetUploadRequest(upload_id=upload_id)
        reply = self._call("resume the upload", self._keys.GetUpload, request)
        return convert.upload_from_proto(reply.upload)

    def upload_chunks(self, requests: Callable[[], Iterator[keys_pb2.UploadChunkRequest]]) -> int:
        """Send the chunks of one upload that `requests` makes; the offset that the server committed. Not retried."""
        reply = self._call("upload the keys", self._keys.UploadChunks, requests, self._timeout, attempts=1)
        return int(reply.committed_offset)

    def commit_upload(self, upload_id: str) -> KeySetInfo:
        request = keys_pb2.CommitUploadRequest(upload_id=upload_id)
        reply = self._call("commit the keys", self._keys.CommitUpload, request, self._timeout, attempts=1)
        return convert.key_set_from_proto(reply.key_set)

    def infer(self, call: InferenceCall) -> InferenceReply:
        request = convert.inference_call_to_proto(call)
        reply = self._call(f"run model {call.model!r}", self._inference.Infer, request, self._timeout)
        return convert.inference_reply_from_proto(reply)

    def _call(
        self,
        what: str,
        method: Callable[..., Any],
        request: Any,
        timeout: float | None = None,
        attempts: int = _ATTEMPTS,
    ) -> Any:
        deadline, trace = time.monotonic() + (timeout or self._control_timeout), trace_metadata()
        token, renewed = self._token.current() if self._token is not None else None, False
        attempt = 1
        while True:
            shown = trace if token is None else (*trace, ("authorization", f"Bearer {token}"))
            try:
                message = request() if callable(request) else request  # a stream is made anew
                return method(message, timeout=max(deadline - time.monotonic(), 0.001), metadata=shown)
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                if failure.code is grpc.StatusCode.UNAUTHENTICATED and token is not None and not renewed:
                    token, renewed = self._another(token), True
                    if token is not None:
                        continue
                wait = failure.retry_after_seconds or _BACKOFF_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
                late = time.monotonic() + wait >= deadline or wait > _MAX_WAIT_SECONDS
                if failure.code is not grpc.StatusCode.UNAVAILABLE or attempt == attempts or late:
                    raise _typed(what, self.address, failure) from None
                time.sleep(wait)
                attempt += 1

    def _another(self, refused: str) -> str | None:
        return self._token.after_refusal(refused) if self._token is not None else None


def _typed(what: str, address: str, failure: Failure) -> ServerError:
    reason = Reason(failure.reason) if failure.reason in Reason.__members__ else Reason.INTERNAL
    said = "".join(c if c.isprintable() else " " for c in failure.message[:_MAX_TEXT_CHARS])
    code, retry_after = failure.code.name, failure.retry_after_seconds
    if failure.code is grpc.StatusCode.UNAVAILABLE and reason is not Reason.WORKER_LOST:
        return ServerUnreachable(
            f"cannot {what}: no answer from {address} ({said}), need a running server; try its address and port, and "
            "certificate= if it serves TLS, client_certificate= if it asks for one",
            code=code,
            retry_after=retry_after,
        )
    kind = _KINDS.get(failure.code, ServerError)
    return kind(
        f"cannot {what}: the server answered {reason.value}: {said}", reason, code=code, retry_after=retry_after
    )
