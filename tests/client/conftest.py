"""A server in this process, on loopback, whose every answer a test can bend; and a small client spec to serve."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))  # echo_runtime must be importable by name, here and in workers

from echo_runtime import echo as echo_ciphertexts
from echo_server import EchoServer

from client import Client
from he_runtime.client_spec import ClientSpec, TensorSpec
from he_runtime.params import CkksParams, find_primes
from he_runtime.ring import CiphertextData, KeyRequest, KeySetSpec
from he_runtime.wire import encode_ciphertexts
from protos import convert
from protos.gen.secateur.v1 import inference_pb2_grpc, keys_pb2, keys_pb2_grpc, model_pb2_grpc
from protos.native import (
    CostEstimate,
    InferenceCall,
    InferenceReply,
    KeySetInfo,
    ModelListing,
    ModelSummary,
    ServedModel,
    ServerInfo,
    Timings,
    UploadInfo,
    UploadOffer,
)
from protos.status import Failure, encode, to_trailing_metadata

CHUNK_BYTES = 32 << 10
_PRIMES = find_primes(4096, [38.0, 34.0, 34.0])
PARAMS = CkksParams(4096, tuple(_PRIMES[:2]), (_PRIMES[2],))


def tensor(
    name: str, shape: tuple[int, ...], level: int = 1, log2_scale: float = 25.0, ciphertexts: int = 1
) -> TensorSpec:
    """A tensor in the first slots of each of `ciphertexts` ciphertexts."""
    size = int(np.prod(shape))
    slot_map = np.full((ciphertexts, PARAMS.slots), -1, dtype=np.int32)
    for part, elements in enumerate(np.array_split(np.arange(size, dtype=np.int32), ciphertexts)):
        slot_map[part, : len(elements)] = elements
    return TensorSpec(name, shape, slot_map, level, 2.0**log2_scale)


SPEC = ClientSpec(
    model="echo",
    version="1",
    plan_digest="ab" * 32,
    params=PARAMS,
    keys=KeySetSpec((KeyRequest(0, 1), KeyRequest(3, 1), KeyRequest(9, 0))),
    input=tensor("x", (2, 4)),
    output=tensor("y", (8,), level=0),
    mean=(0.5,),
    std=(0.25,),
    low=0.0,
    high=1.0,
    labels=tuple("abcdefgh"),
    post_processing="softmax",
    error_bound=1e-3,
)


def echo(spec: ClientSpec, call: InferenceCall) -> list[CiphertextData]:
    """The input ciphertexts with their seeds expanded, switched down to the output level by dropping residues."""
    return echo_ciphertexts(spec, call.ciphertexts)


class FakeServer(
    model_pb2_grpc.ModelServiceServicer, keys_pb2_grpc.KeyServiceServicer, inference_pb2_grpc.InferenceServiceServicer
):
    """Serves `specs`; everything that a test may bend is an attribute."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None, socket: str = "") -> None:
        self.specs: dict[str, ClientSpec] = {"echo": SPEC}
        self.spec_bytes: bytes | None = None  # instead of the spec's own JSON
        self.answer: Callable[[ClientSpec, InferenceCall], bytes] = lambda spec, call: encode_ciphertexts(
            echo(spec, call), spec.params
        )
        self.bend_reply: Callable[[InferenceReply], InferenceReply] = lambda reply: reply
        self.bend_key_set: Callable[[KeySetInfo], KeySetInfo] = lambda info: info
        self.failures: list[Failure] = []  # thrown by the next Infer calls
        self.commit_failures: list[Failure] = []  # thrown by the next CommitUpload calls
        self.cut_at: list[int] = []  # offsets at which an upload breaks
        self.stuck_at: int | None = None  # offset beyond which no upload gets
        self.restart_at: int | None = None  # offset at which the whole server goes away and comes back
        self.calls: list[str] = []
        self.requests: list[InferenceCall] = []
        self.chunk_offsets: list[int] = []
        self.stored: dict[str, bytearray] = {}  # upload id -> bytes
        self.offers: dict[str, UploadOffer] = {}  # upload id -> offer
        self.key_sets: dict[str, KeySetInfo] = {}
        self.info = ServerInfo("fake", 1, 64 << 20, 1 << 30, CHUNK_BYTES)
        self._credentials = credentials
        self._socket = socket  # also listened on, as unix:<path>
        self.port = self._start(0)

    def _start(self, port: int) -> int:
        self._server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        model_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        keys_pb2_grpc.add_KeyServiceServicer_to_server(self, self._server)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self._server)
        address = f"127.0.0.1:{port}"
        bound = (
            self._server.add_insecure_port(address)
            if self._credentials is None
            else self._server.add_secure_port(address, self._credentials)
        )
        if self._socket:
            self._server.add_insecure_port(self._socket)
        self._server.start()
        return int(bound)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.stop(None).wait()

    def restart(self) -> None:
        self._server.stop(0).wait()
        self._start(self.port)

    def fail(self, context: grpc.ServicerContext, failure: Failure) -> None:
        context.set_trailing_metadata(to_trailing_metadata(encode(failure)))
        context.abort(failure.code, failure.message)

    # ModelService

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.calls.append("ListModels")
        summaries = tuple(ModelSummary(name, (s.version,), s.version) for name, s in self.specs.items())
        return convert.model_listing_to_proto(ModelListing(summaries, self.info))

    def GetModel(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.calls.append("GetModel")
        spec = self.specs.get(request.model)
        if spec is None or request.version not in ("", spec.version):
            self.fail(context, Failure("MODEL_UNKNOWN", "no such model; try ListModels", subject="model"))
        assert spec is not None
        data = self.spec_bytes if self.spec_bytes is not None else spec.to_json()
        digest = hashlib.sha256(data).hexdigest()
        summary = ModelSummary(request.model, (spec.version,), spec.version)
        served = ServedModel(summary, spec.version, data, digest, "cd" * 32, spec.plan_digest, self.info)
        return convert.served_model_to_proto(served)

    def EstimateCost(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.calls.append("EstimateCost")
        estimate = CostEstimate(request.model, "1", 12.5, 100, 200, 300, {"rotate": 3}, {"rotate": 9}, "shipped")
        return convert.cost_estimate_to_proto(estimate)

    # KeyService

    def CreateUpload(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.calls.append("CreateUpload")
        offer = convert.upload_offer_from_proto(request)
        for info in self.key_sets.values():
            if info.sha256 == offer.sha256:
                return convert.offer_reply_to_proto(info)
        upload_id = uuid.uuid4().hex
        self.offers[upload_id], self.stored[upload_id] = offer, bytearray()
        return convert.offer_reply_to_proto(self._upload(upload_id))

    def GetUpload(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.calls.append("GetUpload")
        if request.upload_id not in self.offers:
            self.fail(context, Failure("UPLOAD_UNKNOWN", "no such upload", subject="upload_id"))
        return keys_pb2.GetUploadResponse(upload=convert.upload_to_proto(self._upload(request.upload_id)))

    def _upload(self, upload_id: str) -> UploadInfo:
        return UploadInfo(upload_id, self.offers[upload_id].total_bytes, len(self.stored[upload_id]))

    def UploadChunks(self, request_iterator: Any, context: grpc.ServicerContext) -> Any:
        self.calls.append("UploadChunks")
        stored = bytearray()
        for request in request_iterator:
            stored = self.stored[request.upload_id]
            self.chunk_offsets.append(request.offset)
            if request.offset != len(stored):
                self.fail(context, Failure("UPLOAD_OFFSET_WRONG", "wrong offset"))
            if self.stuck_at is not None and len(stored) >= self.stuck_at:
                context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
            stored += request.data
            if self.cut_at and len(stored) >= self.cut_at[0]:
                self.cut_at.pop(0)
                context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")
            if self.restart_at is not None and len(stored) >= self.restart_at:
                self.restart_at = None
                threading.Thread(target=self.restart).start()
                threading.Event().wait(0.3)
        return keys_pb2.UploadChunkResponse(committed_offset=len(stored))

    def CommitUpload(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.calls.append("CommitUpload")
        if self.commit_failures:
            failure = self.commit_failures.pop(0)
            if failure.reason == "DIGEST_MISMATCH":
                del self.offers[request.upload_id]
            self.fail(context, failure)
        offer = self.offers.pop(request.upload_id)
        if hashlib.sha256(self.stored[request.upload_id]).hexdigest() != offer.sha256:
            self.fail(context, Failure("DIGEST_MISMATCH", "the bytes are not those announced"))
        info = KeySetInfo(
            uuid.uuid4().hex, offer.sha256, offer.total_bytes, offer.params_digest, offer.client_spec_digest
        )
        self.key_sets[info.key_set_id] = info
        return keys_pb2.CommitUploadResponse(key_set=convert.key_set_to_proto(self.bend_key_set(info)))

    # InferenceService

    def Infer(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.calls.append("Infer")
        call = convert.inference_call_from_proto(request)
        self.requests.append(call)
        if self.failures:
            self.fail(context, self.failures.pop(0))
        if call.key_set_id not in self.key_sets:
            self.fail(context, Failure("KEY_SET_UNKNOWN", "no such key set; try uploading it", subject="key_set"))
        spec = self.specs[call.model]
        timings = Timings(1.0, 2.0, 3.0)
        data = self.answer(spec, call)
        reply = InferenceReply(data, spec.model, spec.version, spec.plan_digest, timings, {"rotate": 3}, "fake", 1)
        return convert.inference_reply_to_proto(self.bend_reply(reply))

    def evict(self) -> None:
        self.key_sets.clear()

    def bend_spec(self, **changes: Any) -> None:
        """Serve the spec's JSON with some fields replaced, however wrong."""
        self.spec_bytes = json.dumps({**json.loads(SPEC.to_json()), **changes}).encode()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.stop()


@pytest.fixture
def second_server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.stop()


@pytest.fixture
def echo_server(tmp_path: Path) -> Iterator[EchoServer]:
    """A real server, to be started by the test; its control files make it slow, or mortal."""
    made = EchoServer(tmp_path / "echo", SPEC)
    yield made
    (made.control / "hold").unlink(missing_ok=True)
    made.stop()


@pytest.fixture
def client(server: FakeServer, tmp_path: Path) -> Iterator[Client]:
    with Client.connect(server.address, home=tmp_path / "home", timeout=20.0) as connected:
        yield connected


@pytest.fixture
def spec() -> ClientSpec:
    return SPEC


@pytest.fixture
def sample() -> np.ndarray:
    """Raw values in the calibrated range, the largest at flat index 5."""
    return np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.9, 0.0, 0.25]])


@pytest.fixture
def changed() -> Callable[..., ClientSpec]:
    """The served spec with fields replaced."""
    return lambda **changes: replace(SPEC, **changes)


@pytest.fixture
def make_tensor() -> Callable[..., TensorSpec]:
    return tensor
