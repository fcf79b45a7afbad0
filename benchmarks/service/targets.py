"""What the load scripts ask for: the fake runtime's work of a set duration, or an encrypted input of a real model."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from pathlib import Path

import grpc

from protos import convert
from protos.gen.secateur.v1 import inference_pb2, keys_pb2, keys_pb2_grpc, model_pb2, model_pb2_grpc
from protos.native import UploadOffer

from .fakes import PARAMS, spec_digest
from .traffic import Target

__all__ = ["evaluations", "fake_target", "real_target", "workers_seen"]

_KEYS = b"KEYS" + bytes(100_000)
_CHUNK_BYTES = 1 << 18


def fake_target(address: str, log: Path, work_ms: float, payload_bytes: int) -> Target:
    """Work that takes `work_ms` and no CPU; the worker appends the request's tag and its own pid to `log` as it ends."""
    key_set_id = _upload(
        address, _KEYS, UploadOffer(PARAMS, spec_digest(), len(_KEYS), hashlib.sha256(_KEYS).hexdigest())
    )
    start, padding = f"work:{work_ms / 1e3}:{log}:", b"\0" * payload_bytes

    def request(tag: str) -> inference_pb2.InferRequest:
        payload = f"{start}{tag}:".encode() + padding
        return inference_pb2.InferRequest(model="digits", key_set_id=key_set_id, ciphertexts=payload, request_id=tag)

    return Target(address, request, lambda tag, reply: reply == tag.encode())


def evaluations(log: Path) -> Counter[str]:
    """How often each tag was evaluated to its end."""
    return Counter(line.split()[0] for line in _lines(log))


def workers_seen(log: Path) -> list[int]:
    """The workers that ended an evaluation, in that order."""
    return [int(line.split()[1]) for line in _lines(log)]


def _lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def real_target(address: str, model: str) -> Target:
    """One encrypted input of `model`, asked again and again: every reply must be the first one's, bit for bit."""
    import numpy as np

    from he_runtime.backends.tenseal_secret import SecretKey
    from he_runtime.client_spec import ClientSpec
    from he_runtime.wire import KeySetWriter, encode_ciphertexts

    with grpc.insecure_channel(address) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        spec = ClientSpec.parse(stub.GetModel(model_pb2.GetModelRequest(model=model)).client_spec)
    secret = SecretKey.generate(spec.params)
    file = io.BytesIO()
    with KeySetWriter(file, spec.params, spec.keys) as writer:
        for record in secret.make_keys(spec.keys):
            writer.write(record)
    keys = file.getvalue()
    offer = UploadOffer(spec.params.digest, spec.digest, len(keys), hashlib.sha256(keys).hexdigest())
    key_set_id = _upload(address, keys, offer)
    border = spec.input
    slots = border.pack(np.zeros((1, *border.shape)))
    ciphertexts = encode_ciphertexts([secret.encrypt(s, border.level, border.scale) for s in slots], spec.params)
    seen: list[bytes] = []

    def is_right(tag: str, reply: bytes) -> bool:
        seen.append(hashlib.sha256(reply).digest())
        del seen[1:-1]
        return seen[0] == seen[-1]

    def request(tag: str) -> inference_pb2.InferRequest:
        return inference_pb2.InferRequest(model=model, key_set_id=key_set_id, ciphertexts=ciphertexts, request_id=tag)

    return Target(address, request, is_right)


def _upload(address: str, data: bytes, offer: UploadOffer) -> str:
    with grpc.insecure_channel(address) as channel:
        keys = keys_pb2_grpc.KeyServiceStub(channel)
        offered = keys.CreateUpload(convert.upload_offer_to_proto(offer), timeout=60)
        if offered.WhichOneof("result") == "key_set":
            return str(offered.key_set.key_set_id)
        upload_id = offered.upload.upload_id
        chunks = (
            keys_pb2.UploadChunkRequest(upload_id=upload_id, offset=at, data=data[at : at + _CHUNK_BYTES])
            for at in range(0, len(data), _CHUNK_BYTES)
        )
        keys.UploadChunks(chunks, timeout=600)
        done = keys.CommitUpload(keys_pb2.CommitUploadRequest(upload_id=upload_id), timeout=600)
        return str(done.key_set.key_set_id)
