"""The Open Inference Protocol's service: the native one's answers and refusals under other clients' names."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from harness import KEYS, Caller, failure, sha256, spec_digest
from test_he_model import Real, X, real  # noqa: F401 - the fixture of a tiny model on the real runtime

from he_runtime import run_clear
from he_runtime.wire import decode_ciphertexts
from protos.gen.inference import open_inference_pb2 as pb
from protos.gen.inference import open_inference_pb2_grpc
from server.running import RunningServer

SECONDS = 20.0


class OpenClient:
    """A client that knows nothing but the protocol."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub: Any = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)

    def call(self, method: str, request: Any) -> Any:
        return getattr(self.stub, method)(request, timeout=SECONDS)

    def infer(self, payload: bytes, *, raw: bool = False, **parameters: str) -> pb.ModelInferResponse:
        return self.send(infer_request(payload, raw=raw, **parameters))

    def send(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        reply: pb.ModelInferResponse = self.call("ModelInfer", request)
        return reply


def infer_request(
    payload: bytes, *, raw: bool = False, model: str = "digits", **parameters: str
) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="ciphertexts", datatype="BYTES", shape=[1])
    if raw:
        request.raw_input_contents.append(len(payload).to_bytes(4, "little") + payload)
    else:
        tensor.contents.bytes_contents.append(payload)
    for name, text in parameters.items():
        request.parameters[name].string_param = text
    return request


@pytest.fixture(scope="module")
def key_set(shared: tuple[RunningServer, Caller]) -> str:
    return shared[1].upload().key_set_id


@pytest.fixture
def client(caller: Caller) -> OpenClient:
    return OpenClient(caller.channel)


def test_liveness_readiness_and_the_servers_name(client: OpenClient) -> None:
    assert client.call("ServerLive", pb.ServerLiveRequest()).live
    assert client.call("ServerReady", pb.ServerReadyRequest()).ready
    server = client.call("ServerMetadata", pb.ServerMetadataRequest())
    assert server.name == "secateur" and server.version


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("digits", "", True), ("digits", "2", True), ("digits", "3", False), ("digits", "11", False), ("nope", "", False)],
)
def test_a_model_is_ready_when_it_is_served(client: OpenClient, name: str, version: str, ready: bool) -> None:
    assert client.call("ModelReady", pb.ModelReadyRequest(name=name, version=version)).ready is ready


def test_metadata_of_a_model(client: OpenClient) -> None:
    model = client.call("ModelMetadata", pb.ModelMetadataRequest(name="digits"))
    assert (model.name, list(model.versions), model.platform) == ("digits", ["2", "10"], "secateur_ckks")
    for (tensor,) in (model.inputs, model.outputs):
        assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("ciphertexts", "BYTES", [1])
    refused = failure(lambda: client.call("ModelMetadata", pb.ModelMetadataRequest(name="nope")))
    assert (refused.reason, refused.code) == ("MODEL_UNKNOWN", grpc.StatusCode.NOT_FOUND)


def test_typed_contents_are_answered_typed(client: OpenClient, key_set: str) -> None:
    reply = client.infer(b"echo:typed", key_set_id=key_set, client_spec_digest=spec_digest())
    (tensor,) = reply.outputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("ciphertexts", "BYTES", [1])
    assert list(tensor.contents.bytes_contents) == [sha256(KEYS).encode() + b"|typed"]
    assert not reply.raw_output_contents
    assert (reply.model_name, reply.model_version) == ("digits", "10")
    assert reply.parameters["plan_digest"].string_param == sha256(b"10")
    assert reply.parameters["evaluate_ms"].double_param > 0 and reply.parameters["wire_version"].int64_param == 1


def test_raw_contents_are_answered_raw(client: OpenClient, key_set: str) -> None:
    reply = client.infer(b"echo:raw", raw=True, key_set_id=key_set)
    (data,) = reply.raw_output_contents
    assert int.from_bytes(data[:4], "little") == len(data) - 4 and data[4:].endswith(b"|raw")
    assert not reply.outputs[0].HasField("contents")


def test_an_id_is_the_request_id(client: OpenClient, key_set: str) -> None:
    """Two requests of one id and content are one evaluation: the second one's reply is the first one's, to the timings."""
    request = infer_request(b"echo:once", key_set_id=key_set)
    request.id = "an id"
    first, second = client.send(request), client.send(request)
    assert first.id == "an id" and first.parameters == second.parameters
    request.id = "another"
    assert client.send(request).parameters["evaluate_ms"] != first.parameters["evaluate_ms"]


def _change(key_set: str, change: Any) -> pb.ModelInferRequest:
    request = infer_request(b"echo:x", key_set_id=key_set)
    change(request)
    return request


CHANGES = {
    "no input": lambda r: r.ClearField("inputs"),
    "two inputs": lambda r: r.inputs.append(r.inputs[0]),
    "another name": lambda r: setattr(r.inputs[0], "name", "x"),
    "another type": lambda r: setattr(r.inputs[0], "datatype", "FP32"),
    "two elements by shape": lambda r: r.inputs[0].shape.__setitem__(0, 2),
    "two elements": lambda r: r.inputs[0].contents.bytes_contents.append(b"y"),
    "numbers": lambda r: r.inputs[0].contents.fp32_contents.append(1.0),
    "no contents": lambda r: r.inputs[0].ClearField("contents"),
    "both contents": lambda r: r.raw_input_contents.append(b"\0\0\0\0"),
    "another output": lambda r: r.outputs.add(name="logits"),
    "an unknown parameter": lambda r: r.parameters["secret_key"].SetInParent(),
    "a number as parameter": lambda r: setattr(r.parameters["key_set_id"], "int64_param", 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_other_tensors_are_refused(client: OpenClient, key_set: str, change: Any) -> None:
    refused = failure(lambda: client.send(_change(key_set, change)))
    assert (refused.reason, refused.code) == ("BYTES_MALFORMED", grpc.StatusCode.INVALID_ARGUMENT)
    assert refused.subject and key_set not in refused.message


@pytest.mark.parametrize("data", [b"", b"\x01", b"\xff\xff\xff\xffecho:x", b"\0\0\0\0echo:x", b"\x06\0\0\0echo:xy"])
def test_raw_contents_with_a_wrong_length_are_refused(client: OpenClient, key_set: str, data: bytes) -> None:
    request = infer_request(b"", key_set_id=key_set)
    request.inputs[0].ClearField("contents")
    request.raw_input_contents.append(data)
    assert failure(lambda: client.send(request)).reason == "BYTES_MALFORMED"


@pytest.mark.parametrize(
    ("payload", "changes", "reason"),
    [
        (b"echo:x", {"model": "nope"}, "MODEL_UNKNOWN"),
        (b"echo:x", {"client_spec_digest": "00" * 32}, None),
        (b"echo:x", {"model": "other"}, "KEY_PARAMETERS_DIFFER"),
        (b"echo:x", {"key_set_id": "0" * 32}, "KEY_SET_UNKNOWN"),
        (b"", {}, "BYTES_TRUNCATED"),
        (b"garbage", {}, "BYTES_MALFORMED"),
        (b"level:", {}, "LEVEL_MISMATCH"),
        (bytes(2 << 20), {}, "LIMIT_EXCEEDED"),
        (b"die:", {}, "WORKER_LOST"),
    ],
)
def test_refusals_are_the_native_ones(
    client: OpenClient, caller: Caller, key_set: str, payload: bytes, changes: dict[str, str], reason: str | None
) -> None:
    arguments = {"key_set_id": key_set, **changes}
    here = failure(lambda: client.infer(payload, **arguments))
    native = failure(lambda: caller.infer(payload=payload, **arguments))
    assert (here.reason, here.code, here.subject) == (native.reason, native.code, native.subject)
    if len(payload) < 1 << 20:  # above, gRPC itself refuses and names the size of the message
        assert here.message == native.message
    assert reason in (None, here.reason)


def test_reflection_lists_the_service(caller: Caller) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
    for request, found in (
        (reflection_pb2.ServerReflectionRequest(list_services=""), b"inference.GRPCInferenceService"),
        (
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.ModelInferRequest"),
            b"raw_input_contents",
        ),
    ):
        (reply,) = stub.ServerReflectionInfo(iter([request]), timeout=SECONDS)
        assert found in reply.SerializeToString()


@pytest.mark.parametrize("raw", [False, True])
def test_an_encrypted_answer(real: Real, raw: bool) -> None:  # noqa: F811 - the fixture
    client = OpenClient(real.caller.channel)
    assert client.call("ModelReady", pb.ModelReadyRequest(name="served")).ready
    reply = client.infer(real.encrypt(), raw=raw, model="served", key_set_id=real.key_set_id)
    data = reply.raw_output_contents[0][4:] if raw else reply.outputs[0].contents.bytes_contents[0]
    (ct,) = decode_ciphertexts(data, real.spec.params, max_count=1)
    answer = real.spec.output.unpack(real.secret.decrypt(ct)[None])[0]
    assert np.abs(answer - run_clear(real.plan, X[None])[0]).max() <= real.plan.error_bound
    assert reply.parameters["plan_digest"].string_param == real.plan.digest
