"""What the server's tests share: a model directory, a configuration, and a small synchronous client."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from protos import convert
from protos.gen.secateur.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    keys_pb2,
    keys_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)
from protos.native import KeySetInfo, UploadOffer
from protos.status import Failure, from_rpc_error
from server.config import EngineConfig, ServerConfig

PARAMS = "11" * 32
OTHER_PARAMS = "22" * 32
KEYS = b"KEYS" + bytes(range(256)) * 400  # 102 KB


def make_models(root: Path) -> Path:
    """Model `digits` in versions 2 and 10 and a broken 11, and `other` with other parameters."""
    versions: dict[tuple[str, str], dict[str, Any]] = {
        ("digits", "2"): {"params": PARAMS},
        ("digits", "10"): {"params": PARAMS},
        ("digits", "11"): {"broken": True},
        ("other", "1"): {"params": OTHER_PARAMS},
    }
    for (name, version), record in versions.items():
        directory = root / name / version
        directory.mkdir(parents=True)
        (directory / "model.json").write_text(json.dumps(record))
    return root


def make_config(tmp_path: Path, **sections: dict[str, Any]) -> ServerConfig:
    """A fast configuration on the fake runtime; `sections` override fields of the configuration's sections."""
    models = tmp_path / "models"
    if not models.exists():
        make_models(models)
    engine = {"workers": 1, "backend": "fake", "runtime": "fake_runtime", "cancel_grace_seconds": 0.5}
    config = ServerConfig(
        address="127.0.0.1:0",
        models=models,
        state=tmp_path / "state",
        drain_seconds=5.0,
        log_level="error",
        engine=replace(EngineConfig(), **engine),  # type: ignore[arg-type]
    )
    for name, changes in sections.items():
        config = replace(config, **{name: replace(getattr(config, name), **changes)})
    return config


def free_port() -> int:
    """A port that was free a moment ago, for servers that must come back on the same one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def spec_digest(version: str = "10", name: str = "digits") -> str:
    return sha256(f"spec of {name} {version}".encode())


@dataclass
class Caller:
    """A client of one server over one channel."""

    channel: grpc.Channel
    timeout: float = 20.0
    models: Any = field(init=False)
    keys: Any = field(init=False)
    inference: Any = field(init=False)

    def __post_init__(self) -> None:
        self.models = model_pb2_grpc.ModelServiceStub(self.channel)
        self.keys = keys_pb2_grpc.KeyServiceStub(self.channel)
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)

    def offer(self, data: bytes = KEYS, **changes: Any) -> keys_pb2.CreateUploadResponse:
        offer = replace(UploadOffer(PARAMS, spec_digest(), len(data), sha256(data)), **changes)
        reply: keys_pb2.CreateUploadResponse = self.keys.CreateUpload(
            convert.upload_offer_to_proto(offer), timeout=self.timeout
        )
        return reply

    def begin(self, data: bytes = KEYS, **changes: Any) -> str:
        return self.offer(data, **changes).upload.upload_id

    def send(self, upload_id: str, data: bytes, offset: int = 0, chunk: int = 10_000) -> int:
        def chunks() -> Iterator[keys_pb2.UploadChunkRequest]:
            for at in range(0, len(data), chunk):
                yield keys_pb2.UploadChunkRequest(upload_id=upload_id, offset=offset + at, data=data[at : at + chunk])

        return int(self.keys.UploadChunks(chunks(), timeout=self.timeout).committed_offset)

    def commit(self, upload_id: str) -> KeySetInfo:
        request = keys_pb2.CommitUploadRequest(upload_id=upload_id)
        return convert.key_set_from_proto(self.keys.CommitUpload(request, timeout=self.timeout).key_set)

    def upload(self, data: bytes = KEYS, **changes: Any) -> KeySetInfo:
        reply = self.offer(data, **changes)
        if reply.WhichOneof("result") == "key_set":
            return convert.key_set_from_proto(reply.key_set)
        self.send(reply.upload.upload_id, data)
        return self.commit(reply.upload.upload_id)

    def offset(self, upload_id: str) -> int:
        request = keys_pb2.GetUploadRequest(upload_id=upload_id)
        return int(self.keys.GetUpload(request, timeout=self.timeout).upload.committed_offset)

    def get_model(self, name: str = "digits", version: str = "") -> model_pb2.GetModelResponse:
        request = model_pb2.GetModelRequest(model=name, version=version)
        reply: model_pb2.GetModelResponse = self.models.GetModel(request, timeout=self.timeout)
        return reply

    def request(self, key_set_id: str, payload: bytes, **changes: Any) -> inference_pb2.InferRequest:
        return inference_pb2.InferRequest(
            **{"model": "digits", "key_set_id": key_set_id, "ciphertexts": payload, **changes}
        )

    def infer(
        self, key_set_id: str, payload: bytes, timeout: float | None = None, **changes: Any
    ) -> inference_pb2.InferResponse:
        request = self.request(key_set_id, payload, **changes)
        reply: inference_pb2.InferResponse = self.inference.Infer(request, timeout=timeout or self.timeout)
        return reply


def failure(call: Callable[[], object]) -> Failure:
    """The failure that `call` must raise."""
    try:
        call()
    except grpc.RpcError as error:
        return from_rpc_error(error)
    raise AssertionError("the call succeeded")
