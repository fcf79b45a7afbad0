"""A server between client and server that passes every call on, unless a test bends it: on the path, or the server itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import Message

from client import Client, Limits
from protos.gen.secateur.v1 import inference_pb2, keys_pb2, model_pb2
from tests.integration.stack import Stack

__all__ = ["Middleman"]

_SECONDS = 60.0
_REPLIES: dict[str, type[Message]] = {
    "GetModel": model_pb2.GetModelResponse,
    "ListModels": model_pb2.ListModelsResponse,
    "Infer": inference_pb2.InferResponse,
    "CommitUpload": keys_pb2.CommitUploadResponse,
    "CreateUpload": keys_pb2.CreateUploadResponse,
}


class Middleman(grpc.GenericRpcHandler):
    """Forwards to `stack`. `bend` holds, by method name, a function that edits the reply in place.

    After `cut_after` chunks in all, upload streams break, `cuts` times.
    """

    def __init__(self, stack: Stack, address: str = "127.0.0.1:0") -> None:
        self.bend: dict[str, Callable[[Any], object]] = {}
        self.calls: list[str] = []
        self.chunk_bytes: list[int] = []
        self.cut_after = 5
        self.cuts = 0
        self._behind = stack.channel()
        pair = (stack.root / "tls" / "private_key.pem").read_bytes(), stack.certificate.read_bytes()
        self._certificate = stack.certificate
        options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
        self._server = grpc.server(futures.ThreadPoolExecutor(4), (self,), options=options)
        port = self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        self.address = f"127.0.0.1:{port}"

    def __enter__(self) -> Middleman:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(0).wait()
        self._behind.close()

    def connect(self, home: Path, limits: Limits | None = None) -> Client:
        return Client.connect(self.address, certificate=self._certificate, home=home, limits=limits, timeout=60.0)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        path = handler_call_details.method
        name = path.rpartition("/")[2]
        if name == "UploadChunks":
            return grpc.stream_unary_rpc_method_handler(lambda requests, context: self._stream(path, requests, context))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._forward(path, name, request, context))

    def _forward(self, path: str, name: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.calls.append(name)
        return self._bent(name, self._pass(self._behind.unary_unary(path), request, context))

    def _stream(self, path: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        self.calls.append("UploadChunks")
        if self._is_cut():
            context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
        cuts = self.cuts
        reply = self._pass(self._behind.stream_unary(path), self._until_cut(requests), context)
        if self.cuts < cuts:
            context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
        return reply

    def _until_cut(self, requests: Iterator[bytes]) -> Iterator[bytes]:
        for request in requests:
            if self._is_cut():
                return
            self.chunk_bytes.append(len(request))
            yield request

    def _is_cut(self) -> bool:
        cut = self.cuts > 0 and len(self.chunk_bytes) >= self.cut_after
        self.cuts -= cut
        return cut

    def _pass(self, call: Any, request: Any, context: grpc.ServicerContext) -> bytes:
        try:
            reply: bytes = call(request, timeout=_SECONDS)
            return reply
        except grpc.RpcError as error:
            context.set_trailing_metadata(tuple(error.trailing_metadata() or ()))  # type: ignore[attr-defined]
            context.abort(error.code(), error.details())  # type: ignore[attr-defined]
            raise AssertionError("abort returned") from error

    def _bent(self, name: str, reply: bytes) -> bytes:
        if name not in self.bend:
            return reply
        message = _REPLIES[name].FromString(reply)
        self.bend[name](message)
        return message.SerializeToString()
