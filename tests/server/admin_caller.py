"""An administrator of a test's server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from protos.admin import ModelVersion, ServerStats, model_version_from_proto, server_stats_from_proto
from protos.gen.secateur.v1 import admin_pb2, admin_pb2_grpc

ADMIN = {"address": "127.0.0.1:0"}


@dataclass
class Administrator:
    """A client of one AdminService."""

    channel: grpc.Channel
    timeout: float = 30.0
    stub: Any = field(init=False)

    def __post_init__(self) -> None:
        self.stub = admin_pb2_grpc.AdminServiceStub(self.channel)

    def versions(self) -> dict[tuple[str, str], ModelVersion]:
        reply = self.stub.ListVersions(admin_pb2.ListVersionsRequest(), timeout=self.timeout)
        found = [model_version_from_proto(v) for v in reply.versions]
        return {(v.model, v.version): v for v in found}

    def load(self, model: str, version: str, keep_default: bool = False) -> ModelVersion:
        request = admin_pb2.LoadModelRequest(model=model, version=version, keep_default=keep_default)
        return model_version_from_proto(self.stub.LoadModel(request, timeout=self.timeout).version)

    def unload(self, model: str, version: str) -> None:
        self.stub.UnloadModel(admin_pb2.UnloadModelRequest(model=model, version=version), timeout=self.timeout)

    def set_default(self, model: str, version: str = "") -> str:
        request = admin_pb2.SetDefaultRequest(model=model, version=version)
        return str(self.stub.SetDefault(request, timeout=self.timeout).version)

    def drain(self) -> admin_pb2.DrainResponse:
        reply: admin_pb2.DrainResponse = self.stub.Drain(admin_pb2.DrainRequest(), timeout=self.timeout)
        return reply

    def stats(self) -> ServerStats:
        return server_stats_from_proto(self.stub.Stats(admin_pb2.StatsRequest(), timeout=self.timeout))


@contextmanager
def administrator(address: str) -> Iterator[Administrator]:
    with grpc.insecure_channel(address) as channel:
        yield Administrator(channel)
