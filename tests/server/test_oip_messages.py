"""The messages are the public specification's, number by number: what other clients put on the wire is what is read here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from protos.gen.inference import open_inference_pb2 as pb

# Message -> its fields in the order of their numbers, which run from 1 without a gap. "*": repeated, "%": map to parameters.
SPECIFICATION = {
    "ServerLiveRequest": [],
    "ServerLiveResponse": ["live bool"],
    "ServerReadyRequest": [],
    "ServerReadyResponse": ["ready bool"],
    "ModelReadyRequest": ["name string", "version string"],
    "ModelReadyResponse": ["ready bool"],
    "ServerMetadataRequest": [],
    "ServerMetadataResponse": ["name string", "version string", "extensions *string"],
    "ModelMetadataRequest": ["name string", "version string"],
    "ModelMetadataResponse": [
        "name string",
        "versions *string",
        "platform string",
        "inputs *TensorMetadata",
        "outputs *TensorMetadata",
    ],
    "ModelMetadataResponse.TensorMetadata": ["name string", "datatype string", "shape *int64"],
    "ModelInferRequest": [
        "model_name string",
        "model_version string",
        "id string",
        "parameters %",
        "inputs *InferInputTensor",
        "outputs *InferRequestedOutputTensor",
        "raw_input_contents *bytes",
    ],
    "ModelInferRequest.InferInputTensor": [
        "name string",
        "datatype string",
        "shape *int64",
        "parameters %",
        "contents InferTensorContents",
    ],
    "ModelInferRequest.InferRequestedOutputTensor": ["name string", "parameters %"],
    "ModelInferResponse": [
        "model_name string",
        "model_version string",
        "id string",
        "parameters %",
        "outputs *InferOutputTensor",
        "raw_output_contents *bytes",
    ],
    "ModelInferResponse.InferOutputTensor": [
        "name string",
        "datatype string",
        "shape *int64",
        "parameters %",
        "contents InferTensorContents",
    ],
    "InferParameter": [
        "bool_param bool",
        "int64_param int64",
        "string_param string",
        "double_param double",
        "uint64_param uint64",
    ],
    "InferTensorContents": [
        "bool_contents *bool",
        "int_contents *int32",
        "int64_contents *int64",
        "uint_contents *uint32",
        "uint64_contents *uint64",
        "fp32_contents *float",
        "fp64_contents *double",
        "bytes_contents *bytes",
    ],
}
METHODS = ["ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"]
TYPES = {
    getattr(FieldDescriptor, name): name.removeprefix("TYPE_").lower()
    for name in dir(FieldDescriptor)
    if name.startswith("TYPE_")
}


def messages(containers: Iterator[Descriptor]) -> Iterator[Descriptor]:
    for message in containers:
        if not message.GetOptions().map_entry:
            yield message
            yield from messages(iter(message.nested_types))


def described(field: FieldDescriptor) -> str:
    of = field.message_type
    if of is not None and of.GetOptions().map_entry:
        assert of.fields_by_name["value"].message_type.name == "InferParameter"
        return f"{field.name} %"
    kind = of.name if of is not None else TYPES[field.type]
    return f"{field.name} {'*' if field.is_repeated else ''}{kind}"


FOUND = {
    m.full_name.removeprefix("inference."): m for m in messages(iter(pb.DESCRIPTOR.message_types_by_name.values()))
}


def test_there_are_these_messages_and_no_others() -> None:
    assert pb.DESCRIPTOR.package == "inference" and set(FOUND) == set(SPECIFICATION)


@pytest.mark.parametrize("name", SPECIFICATION)
def test_fields_have_the_specifications_numbers_and_types(name: str) -> None:
    fields = sorted(FOUND[name].fields, key=lambda field: field.number)
    assert [field.number for field in fields] == list(range(1, len(fields) + 1))
    assert [described(field) for field in fields] == SPECIFICATION[name]


def test_the_service_has_the_specifications_methods() -> None:
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    assert service.full_name == "inference.GRPCInferenceService"
    assert [method.name for method in service.methods] == METHODS
    for method in service.methods:
        assert (method.input_type.name, method.output_type.name) == (f"{method.name}Request", f"{method.name}Response")
        assert not method.client_streaming and not method.server_streaming


def test_a_parameter_is_one_of_its_kinds() -> None:
    (choice,) = pb.InferParameter.DESCRIPTOR.oneofs
    assert choice.name == "parameter_choice" and len(choice.fields) == 5
