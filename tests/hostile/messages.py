"""Messages that are no messages, messages with the wrong things in them, and secrets in every field of every request."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError, Message

from protos.gen.inference import open_inference_pb2 as pb
from protos.gen.secateur.v1 import inference_pb2, keys_pb2, model_pb2
from tests.hostile.carriers import MODEL_INFER
from tests.hostile.case import ACCEPTED, HUGE, Answer, Case, Group, bare, nth, refusal
from tests.hostile.world import ACME, World

__all__ = ["MESSAGES", "METHODS", "varint"]

_SHIM = "/inference.GRPCInferenceService/"
# Each method with its request and what the empty one is answered.
METHODS: dict[str, tuple[type[Message], str]] = {
    "ModelService/ListModels": (model_pb2.ListModelsRequest, ""),
    "ModelService/GetModel": (model_pb2.GetModelRequest, "MODEL_UNKNOWN"),
    "ModelService/EstimateCost": (model_pb2.EstimateCostRequest, "MODEL_UNKNOWN"),
    "KeyService/CreateUpload": (keys_pb2.CreateUploadRequest, "MODEL_UNKNOWN"),
    "KeyService/UploadChunks": (keys_pb2.UploadChunkRequest, "UPLOAD_UNKNOWN"),
    "KeyService/UploadChunk": (keys_pb2.UploadChunkRequest, "UPLOAD_UNKNOWN"),
    "KeyService/GetUpload": (keys_pb2.GetUploadRequest, "UPLOAD_UNKNOWN"),
    "KeyService/CommitUpload": (keys_pb2.CommitUploadRequest, "UPLOAD_UNKNOWN"),
    "KeyService/GetKeySet": (keys_pb2.GetKeySetRequest, "KEY_SET_UNKNOWN"),
    "KeyService/ListKeySets": (keys_pb2.ListKeySetsRequest, ""),
    "KeyService/TouchKeySet": (keys_pb2.TouchKeySetRequest, "KEY_SET_UNKNOWN"),
    "KeyService/DeleteKeySet": (keys_pb2.DeleteKeySetRequest, "KEY_SET_UNKNOWN"),
    "InferenceService/Infer": (inference_pb2.InferRequest, "MODEL_UNKNOWN"),
    "InferenceService/SubmitJob": (inference_pb2.SubmitJobRequest, "MODEL_UNKNOWN"),
    "InferenceService/WatchJob": (inference_pb2.WatchJobRequest, "JOB_UNKNOWN"),
    "InferenceService/CancelJob": (inference_pb2.CancelJobRequest, "JOB_UNKNOWN"),
    "InferenceService/GetResult": (inference_pb2.GetResultRequest, "JOB_UNKNOWN"),
    _SHIM + "ServerLive": (pb.ServerLiveRequest, ""),
    _SHIM + "ServerReady": (pb.ServerReadyRequest, ""),
    _SHIM + "ModelReady": (pb.ModelReadyRequest, ""),
    _SHIM + "ServerMetadata": (pb.ServerMetadataRequest, ""),
    _SHIM + "ModelMetadata": (pb.ModelMetadataRequest, "MODEL_UNKNOWN"),
    MODEL_INFER: (pb.ModelInferRequest, "BYTES_MALFORMED"),
}
_NAMES = tuple(METHODS)


def _answer(reason: str) -> Answer:
    return refusal(reason) if reason else ACCEPTED


def _sent(name: str, method: str, reason: str, data: bytes) -> Case:
    return Case.of(f"{name} to {method}", _answer(reason), lambda world: world.call(method, data))


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def _tag(field: int, kind: int) -> bytes:
    return varint(field << 3 | kind)


def _is_message(data: bytes, kind: type[Message]) -> bool:
    try:
        kind.FromString(data)
    except DecodeError:
        return False
    return True


def _garbage(rng: random.Random, n: int, world: World) -> Case:
    """Random bytes, drawn again until no protobuf library takes them for a message."""
    method = nth(_NAMES, n)
    data = b""
    while _is_message(data, METHODS[method][0]):
        data = rng.randbytes(rng.randrange(1, 64))
    return _sent("random bytes", method, "BYTES_MALFORMED", data)


def _lengths(rng: random.Random, n: int, world: World) -> Case:
    """Fields longer than the message, varints longer than varints, ends of groups that never began."""
    method = nth(_NAMES, n)
    field = rng.randrange(1, 9)
    kinds = [
        *(_tag(field, 2) + varint(v) + rng.randbytes(9) for v in (10, *HUGE)),
        _tag(field, 0) + b"\xff" * 10 + b"\1",
        b"\xff" * 11,
        _tag(field, 4),
        _tag(field, 3) + _tag(field + 1, 4),
        _tag(field, 6) + b"\0",
        _tag(field, 7) + b"\0",
        b"\0\0",
        _tag(field, 1) + bytes(7),
        _tag(field, 5) + bytes(3),
    ]
    data = nth(kinds, n // len(_NAMES) + n)
    # protobuf takes a field of number 0 for an unknown one where a message has no fields at all.
    reason = METHODS[method][1] if data == b"\0\0" and _is_message(data, METHODS[method][0]) else "BYTES_MALFORMED"
    return _sent("a field that does not end", method, reason, data)


def _depth(rng: random.Random, n: int, world: World) -> Case:
    """Groups within groups, which no message here has: few are skipped, many refused."""
    method = nth(_NAMES, n)
    many = n // len(_NAMES) % 2 == 0
    levels = rng.randrange(200, 20_000) if many else rng.randrange(1, 60)
    data = _tag(100, 3) * levels + _tag(100, 4) * levels
    reason = "BYTES_MALFORMED" if many else METHODS[method][1]
    return _sent(f"groups {levels} deep", method, reason, data)


def _texts(kind: type[Message]) -> list[Any]:
    return [f for f in kind.DESCRIPTOR.fields if f.type == f.TYPE_STRING]


def _utf8(rng: random.Random, n: int, world: World) -> Case:
    methods = [m for m in _NAMES if _texts(METHODS[m][0])]
    method = nth(methods, n)
    field = rng.choice(_texts(METHODS[method][0]))
    text = rng.choice((b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"a\x80", b"\xf5\x80\x80\x80"))
    return _sent("no UTF-8", method, "BYTES_MALFORMED", _tag(field.number, 2) + varint(len(text)) + text)


def _unknown(rng: random.Random, n: int, world: World) -> Case:
    """Fields that the message does not have, or has of another type: skipped, so that nothing is left of the request."""
    method = nth(_NAMES, n)
    kind, reason = METHODS[method]
    numbers = [f.number for f in kind.DESCRIPTOR.fields if f.type in (f.TYPE_STRING, f.TYPE_BYTES, f.TYPE_MESSAGE)]
    parts = [_tag(rng.randrange(1000, 1 << 29), 0) + varint(rng.getrandbits(64)) for _ in range(rng.randrange(1, 50))]
    parts += [_tag(number, 0) + varint(rng.getrandbits(63)) for number in numbers]
    parts += [_tag(999, 2) + varint(5) + rng.randbytes(5)] * (10_000 if n % 7 == 0 else 1)
    return _sent(f"{len(parts)} unknown fields", method, reason, b"".join(parts))


def _empty(rng: random.Random, n: int, world: World) -> Case:
    method = nth(_NAMES, n)
    if n // len(_NAMES) % 2:
        return Case.of(f"no message to {method}", refusal("BYTES_TRUNCATED"), lambda world: world.call(method, []))
    return _sent("the empty message", method, METHODS[method][1], b"")


def _names(rng: random.Random, n: int, world: World) -> Case:
    """Methods that do not exist, also such as look like files, other versions and the administrator's."""
    word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz./%", k=rng.randrange(1, 60)))
    known = (
        "/",
        "/secateur.v1.InferenceService",
        "/secateur.v1.InferenceService/",
        "/secateur.v1.InferenceService/infer",
        "/secateur.v2.InferenceService/Infer",
        "/secateur.v1.AdminService/Drain",
        "/secateur.v1.AdminService/Stats",
        "/../../etc/passwd",
        "/" + "a" * 4000,
        "/" + word,
    )
    method = nth(known, n)
    return Case.of(f"method {method[:60]}", bare("UNIMPLEMENTED"), lambda world: world.call(method, b""))


def _identity(rng: random.Random, n: int, world: World) -> Case:
    """Tokens that are none."""
    method = nth(_NAMES, n)
    header, claims, signature = world.tokens[ACME].split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    tokens = (
        "",
        "Bearer ",
        "Bearer a.b.c",
        "Bearer " + "a" * 5000,
        f"Bearer {none}.{claims}.",
        f"Bearer {header}.{claims}.{signature[::-1]}",
        f"Basic {header}.{claims}.{signature}",
        "Bearer " + world.sides["tiny"].smuggled["SEAL"][1000:2000].hex(),
    )
    shown = nth(tokens, n // len(_NAMES) + n)
    metadata = (("authorization", shown),) if shown else ()
    answer = refusal("UNAUTHENTICATED")
    return Case.of(f"no token to {method}", answer, lambda world: world.call(method, b"", metadata=metadata))


def _shim(rng: random.Random, n: int, world: World) -> Case:
    """Tensors that are not the one that this server takes."""
    side = world.sides["tiny"]

    def made() -> Any:
        request = pb.ModelInferRequest(model_name="tiny")
        request.parameters["key_set_id"].string_param = side.key_set_id
        request.inputs.add(name="ciphertexts", datatype="BYTES", shape=[1]).contents.bytes_contents.append(side.request)
        return request

    number = nth((0, *HUGE[:2], (1 << 63) - 1, -1), n // 12)
    edits: list[Callable[[Any], object]] = [
        lambda r: r.inputs.add(name="ciphertexts"),
        lambda r: r.ClearField("inputs"),
        lambda r: setattr(r.inputs[0], "name", "x" * 500),
        lambda r: setattr(r.inputs[0], "datatype", "FP32"),
        lambda r: r.inputs[0].shape.append(number),
        lambda r: r.inputs[0].contents.bytes_contents.append(b"x"),
        lambda r: r.inputs[0].contents.fp32_contents.append(1.0),
        lambda r: r.raw_input_contents.append(side.request),
        lambda r: r.outputs.add(name="secret"),
        lambda r: setattr(r.parameters["key_set_id"], "int64_param", 1),
        lambda r: setattr(r.parameters["secret_key"], "string_param", "x"),
        lambda r: (r.inputs[0].ClearField("contents"), r.raw_input_contents.append(b"\xff\xff\xff\xff" + side.request)),
    ]
    request = made()
    nth(edits, n)(request)
    return _sent(f"tensor {n % len(edits)}", MODEL_INFER, "BYTES_MALFORMED", request.SerializeToString())


MESSAGES: dict[str, Group] = {
    "messages: random bytes": _garbage,
    "messages: fields without an end": _lengths,
    "messages: groups in groups": _depth,
    "messages: no UTF-8": _utf8,
    "messages: unknown fields": _unknown,
    "messages: none, empty": _empty,
    "methods that do not exist": _names,
    "tokens that are none": _identity,
    "tensors of other kinds": _shim,
}
