"""Ciphertexts as a BYTES tensor of one element, in either of the two forms that the protocol has for tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from he_runtime.errors import Reason
from protos.gen.inference import open_inference_pb2 as pb

from ..errors import ServiceError

__all__ = ["NAME", "PARAMETERS", "Taken", "answer", "metadata", "take"]

NAME = "ciphertexts"
DATATYPE = "BYTES"
PARAMETERS = ("key_set_id", "client_spec_digest")
_LENGTH_BYTES = 4  # before each BYTES element of raw contents, little-endian


@dataclass(frozen=True)
class Taken:
    """What a request holds: the ciphertexts, texts among its parameters, and whether its tensor came raw."""

    ciphertexts: bytes
    parameters: Mapping[str, str]
    raw: bool


def take(request: pb.ModelInferRequest) -> Taken:
    """The one input of a request; BYTES_MALFORMED for other tensors, parameters or outputs than this server has."""
    names = [tensor.name for tensor in request.inputs]
    _require(names == [NAME], "inputs", f"inputs {_shown(names)}", f"one named {NAME!r}")
    tensor = request.inputs[0]
    _require(tensor.datatype == DATATYPE, NAME, f"datatype {tensor.datatype[:16]!r}", DATATYPE)
    _require(
        all(size == 1 for size in tensor.shape),
        NAME,
        f"shape {list(tensor.shape)[:8]}",
        "[1]: one codec object for all",
    )
    wanted = [output.name for output in request.outputs]
    _require(wanted in ([], [NAME]), "outputs", f"outputs {_shown(wanted)}", f"{NAME!r} or none named")
    raw = len(request.raw_input_contents) > 0
    return Taken(_raw(request) if raw else _typed(tensor.contents), _texts(request.parameters), raw)


def _raw(request: pb.ModelInferRequest) -> bytes:
    entries: Sequence[bytes] = request.raw_input_contents
    _require(len(entries) == 1, "raw_input_contents", f"{len(entries)} entries", "one for the one input")
    _require(not request.inputs[0].HasField("contents"), NAME, "contents beside raw contents", "one of them")
    data = entries[0]
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    there = len(data) - _LENGTH_BYTES
    _require(
        length == there,
        "raw_input_contents",
        f"{there} bytes of an element of {length}",
        "one element after its length",
    )
    return data[_LENGTH_BYTES:]


def _typed(contents: pb.InferTensorContents) -> bytes:
    others = [field.name for field, _ in contents.ListFields() if field.name != "bytes_contents"]
    _require(not others, NAME, f"contents in {_shown(others)}", "bytes_contents")
    elements: Sequence[bytes] = contents.bytes_contents
    _require(len(elements) == 1, NAME, f"{len(elements)} elements", "one codec object of all ciphertexts")
    return elements[0]


def _texts(parameters: Mapping[str, Any]) -> dict[str, str]:
    unknown = sorted(set(parameters) - set(PARAMETERS))
    _require(not unknown, "parameters", f"parameters {_shown(unknown)}", f"some of {', '.join(PARAMETERS)}")
    for name, value in parameters.items():
        kind = value.WhichOneof("parameter_choice")
        _require(kind == "string_param", f"parameters.{name}", f"a {kind}", "a string_param")
    return {name: value.string_param for name, value in parameters.items()}


def _require(condition: bool, subject: str, got: str, need: str) -> None:
    if not condition:
        raise ServiceError(
            f"cannot infer: got {got}, need {need}; try the model's metadata", Reason.BYTES_MALFORMED, subject=subject
        )


def _shown(names: list[str]) -> str:
    return ", ".join(repr(name[:32]) for name in names[:4]) or "none"


def answer(response: pb.ModelInferResponse, ciphertexts: bytes, *, raw: bool) -> None:
    """Put the output tensor into a response, in the form that the request's came in."""
    tensor = response.outputs.add(name=NAME, datatype=DATATYPE, shape=[1])
    if raw:
        response.raw_output_contents.append(len(ciphertexts).to_bytes(_LENGTH_BYTES, "little") + ciphertexts)
    else:
        tensor.contents.bytes_contents.append(ciphertexts)


def metadata() -> pb.ModelMetadataResponse.TensorMetadata:
    """What both the input and the output are."""
    return pb.ModelMetadataResponse.TensorMetadata(name=NAME, datatype=DATATYPE, shape=[1])
