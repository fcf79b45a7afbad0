"""The ways in which ciphertexts reach a worker: the native call, the Open Inference shim's two forms, and a job."""

from __future__ import annotations

from collections.abc import Callable

from protos.gen.inference import open_inference_pb2 as pb
from protos.gen.secateur.v1 import inference_pb2
from protos.status import code_of
from tests.hostile.world import Outcome, World

__all__ = ["CARRIERS", "MODEL_INFER"]

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"


def _call(world: World, data: bytes, model: str) -> Outcome:
    return world.call("InferenceService/Infer", world.infer_request(data, model).SerializeToString())


def _shim(world: World, data: bytes, model: str, raw: bool) -> Outcome:
    request = pb.ModelInferRequest(model_name=model)
    request.parameters["key_set_id"].string_param = world.sides[model].key_set_id
    tensor = request.inputs.add(name="ciphertexts", datatype="BYTES", shape=[1])
    if raw:
        request.raw_input_contents.append(len(data).to_bytes(4, "little") + data)
    else:
        tensor.contents.bytes_contents.append(data)
    return world.call(MODEL_INFER, request.SerializeToString())


def _job(world: World, data: bytes, model: str) -> Outcome:
    """Submit, watch to the end, collect. What the job failed with, its status and its result must say alike."""
    request = inference_pb2.SubmitJobRequest(call=world.infer_request(data, model))
    outcome = world.call("InferenceService/SubmitJob", request.SerializeToString())
    if outcome.code != "OK":
        return outcome
    job_id = inference_pb2.SubmitJobResponse.FromString(outcome.reply).job_id
    ask = inference_pb2.WatchJobRequest(job_id=job_id).SerializeToString()
    watched = world.call("InferenceService/WatchJob", ask)
    status = inference_pb2.WatchJobResponse.FromString(watched.reply).status
    result = world.call("InferenceService/GetResult", ask)
    failed = status.state == inference_pb2.JOB_STATE_FAILED
    reason = status.reason if failed else ""
    code = code_of(reason).name if failed else "OK"
    if (code, reason) != result.answer:
        return Outcome("WATCHED ANOTHER END", f"{code} {reason} and {result.answer}")
    return result


CARRIERS: dict[str, Callable[[World, bytes, str], Outcome]] = {
    "call": _call,
    "shim": lambda world, data, model: _shim(world, data, model, raw=False),
    "raw shim": lambda world, data, model: _shim(world, data, model, raw=True),
    "job": _job,
}
