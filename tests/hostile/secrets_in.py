"""A secret key, as SEAL writes it and as its file holds it, in every field that takes bytes or text."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from he_runtime.wire import HEADER_BYTES
from protos.gen.inference import open_inference_pb2 as pb
from protos.gen.secateur.v1 import inference_pb2, keys_pb2, model_pb2
from tests.hostile.carriers import CARRIERS, MODEL_INFER
from tests.hostile.case import ACCEPTED, Case, Group, nth, refusal
from tests.hostile.messages import varint
from tests.hostile.world import ACME, Outcome, World
from tests.wire.arrays import resealed

__all__ = ["SECRETS", "traces"]

_PIECE = 48


def traces(world: World) -> list[bytes]:
    """Pieces of the secrets, raw and in hexadecimal, that must be found nowhere at the server."""
    found = []
    for name in ("tiny", "other"):
        raw = world.sides[name].smuggled["SEAL"]
        pieces = [raw[at : at + _PIECE] for at in range(256, len(raw) - _PIECE, max(1, (len(raw) - 512) // 16))]
        found += [form for piece in pieces if len(set(piece)) > 8 for form in (piece, piece.hex().encode())]
    return found


def _body(world: World, form: str, kind: int) -> bytes:
    """The secret as the body of an object of the codec, lengths and digests in order."""
    side = world.sides["tiny"]
    data = side.smuggled[form]
    sealed = side.request[:6] + struct.pack("<HQ", kind, len(data)) + side.request[16:HEADER_BYTES] + data
    return resealed(sealed, lambda _: None)


def _as_bytes(rng: random.Random, n: int, world: World) -> Case:
    """In the fields that take bytes: bare, and under the codec's header."""
    form = nth(("SEAL", "file"), n)
    secret = world.sides["tiny"].smuggled[form]
    carrier = nth(sorted(CARRIERS), n // 2)
    carry = CARRIERS[carrier]
    # Under the header, the first words of a secret are no plausible count of ciphertexts.
    made: list[tuple[str, str, Callable[[World], Outcome]]] = [
        ("ciphertexts", "BYTES_MALFORMED", lambda w: carry(w, secret, "tiny")),
        ("body of ciphertexts", "LIMIT_EXCEEDED", lambda w: carry(w, _body(w, form, 1), "tiny")),
        ("a key set", "BYTES_MALFORMED", lambda w: w.upload(secret, "tiny")),
        ("body of a key set", "LIMIT_EXCEEDED", lambda w: w.upload(_body(w, form, 4), "tiny")),
        ("a chunk", "SIZE_MISMATCH", lambda w: w.call("KeyService/UploadChunk", _chunk(w, secret))),
        ("a key set of another digest", "DIGEST_MISMATCH", lambda w: w.upload(secret, "tiny", sha256="0" * 64)),
    ]
    name, reason, play = nth(made, n // 8 + n)
    return Case.of(f"{form} as {name}, by {carrier}", refusal(reason), play)


def _chunk(world: World, data: bytes) -> bytes:
    return keys_pb2.UploadChunkRequest(upload_id=world.upload_id, offset=500, data=data).SerializeToString()


def _as_text(rng: random.Random, n: int, world: World) -> Case:
    """In the fields that take text, in hexadecimal: whole where there is room, else a piece of it."""
    tiny = world.sides["tiny"]
    whole = tiny.smuggled[nth(("SEAL", "file"), n)].hex()
    at = rng.randrange(2000, len(whole) - 200)
    piece = whole[at : at + 64]
    text = nth((whole, piece), n // 2)
    good: dict[str, Any] = {"model": "tiny", "key_set_id": tiny.key_set_id, "ciphertexts": tiny.request}
    offer: dict[str, Any] = {
        "params_digest": tiny.spec.params.digest,
        "client_spec_digest": tiny.spec.digest,
        "total_bytes": 99,
    }

    def infer(reason: str, **field: str) -> tuple[str, str, Message]:
        return "InferenceService/Infer", reason, inference_pb2.InferRequest(**{**good, **field})

    def begin(reason: str, **field: str) -> tuple[str, str, Message]:
        return "KeyService/CreateUpload", reason, keys_pb2.CreateUploadRequest(**{"sha256": "0" * 64, **offer, **field})

    made: list[tuple[str, str, Message]] = [
        infer("MODEL_UNKNOWN", model=text),
        infer("MODEL_UNKNOWN", version=text),
        infer("VERSION_UNKNOWN", client_spec_digest=text),
        infer("KEY_SET_UNKNOWN", key_set_id=text),
        infer("LIMIT_EXCEEDED" if len(text) > 128 else "", request_id=text),
        begin("KEY_PARAMETERS_DIFFER", params_digest=text),
        begin("MODEL_UNKNOWN", client_spec_digest=text),
        begin("BYTES_MALFORMED", sha256=whole),
        ("KeyService/UploadChunk", "UPLOAD_UNKNOWN", keys_pb2.UploadChunkRequest(upload_id=text)),
        ("KeyService/GetKeySet", "KEY_SET_UNKNOWN", keys_pb2.GetKeySetRequest(key_set_id=text)),
        ("KeyService/GetKeySet", "KEY_SET_UNKNOWN", keys_pb2.GetKeySetRequest(handle=text)),
        ("KeyService/DeleteKeySet", "KEY_SET_UNKNOWN", keys_pb2.DeleteKeySetRequest(key_set_id=text)),
        ("ModelService/GetModel", "MODEL_UNKNOWN", model_pb2.GetModelRequest(model=text)),
        ("ModelService/EstimateCost", "MODEL_UNKNOWN", model_pb2.EstimateCostRequest(model="tiny", version=text)),
        ("InferenceService/WatchJob", "JOB_UNKNOWN", inference_pb2.WatchJobRequest(job_id=text)),
        ("InferenceService/CancelJob", "JOB_UNKNOWN", inference_pb2.CancelJobRequest(job_id=text)),
        *(("shim " + name, reason, request) for name, reason, request in _tensors(world, text)),
    ]
    method, reason, request = nth(made, n // 4 + n)
    data = request.SerializeToString()
    path = MODEL_INFER if method.startswith("shim") else method
    expected = refusal(reason) if reason else ACCEPTED
    return Case.of(f"{len(text)} digits to {method}", expected, lambda world: world.call(path, data))


def _tensors(world: World, text: str) -> list[tuple[str, str, Any]]:
    side = world.sides["tiny"]

    def tensor(**fields: Any) -> Any:
        request = pb.ModelInferRequest(**{"model_name": "tiny", **fields})
        request.inputs.add(name="ciphertexts", datatype="BYTES").contents.bytes_contents.append(side.request)
        request.parameters["key_set_id"].string_param = side.key_set_id
        return request

    keys, parameter = tensor(), tensor()
    keys.parameters["key_set_id"].string_param = text
    parameter.parameters[text].string_param = text
    return [
        ("id", "LIMIT_EXCEEDED" if len(text) > 128 else "", tensor(id=text)),
        ("model", "MODEL_UNKNOWN", tensor(model_name=text)),
        ("keys", "KEY_SET_UNKNOWN", keys),
        ("parameter", "BYTES_MALFORMED", parameter),
    ]


def _in_metadata(rng: random.Random, n: int, world: World) -> Case:
    """In headers that nobody asked for, and as unknown fields of a request: neither is read, nor kept."""
    piece = world.sides["tiny"].smuggled["SEAL"][1000:3000]
    shown: tuple[tuple[str, str | bytes], ...] = (("authorization", f"Bearer {world.tokens[ACME]}"),)
    if n % 2:
        data = varint(1000 << 3 | 2) + varint(len(piece)) + piece
        return Case.of("an unknown field", ACCEPTED, lambda w: w.call("ModelService/ListModels", data))
    shown += (("x-secret-bin", piece), ("x-secret", piece.hex()[:1000]), ("traceparent", piece.hex()[:55]))
    return Case.of("headers", ACCEPTED, lambda w: w.call("ModelService/ListModels", b"", metadata=shown))


SECRETS: dict[str, Group] = {
    "secrets: fields of bytes": _as_bytes,
    "secrets: fields of text": _as_text,
    "secrets: headers and unknown fields": _in_metadata,
}
