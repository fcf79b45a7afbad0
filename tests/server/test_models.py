"""ModelService, health and reflection."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from harness import Caller, failure, sha256, spec_digest

from protos import convert
from protos.gen.secateur.v1 import model_pb2
from server.models.repository import natural_order


def test_models_are_listed_with_versions_in_natural_order(caller: Caller) -> None:
    listing = convert.model_listing_from_proto(caller.models.ListModels(model_pb2.ListModelsRequest(), timeout=5))
    assert [(m.name, m.versions, m.default_version) for m in listing.models] == [
        ("digits", ("2", "10"), "10"),
        ("other", ("1",), "1"),
    ]
    assert listing.server.max_chunk_bytes == 1 << 18 and listing.server.build


def test_a_model_comes_with_its_spec_and_digests(caller: Caller) -> None:
    served = convert.served_model_from_proto(caller.get_model("digits", "2"))
    assert served.client_spec == b"spec of digits 2" and served.client_spec_digest == spec_digest("2") == sha256(
        served.client_spec
    )
    assert served.version == "2" and served.summary.default_version == "10" and served.plan_digest == sha256(b"2")


@pytest.mark.parametrize(
    ("name", "version"), [("nope", ""), ("digits", "3"), ("", ""), ("../digits", "2"), ("digits", "../2")]
)
def test_an_unknown_model_is_not_found_and_told_what_there_is(caller: Caller, name: str, version: str) -> None:
    unknown = failure(lambda: caller.get_model(name, version))
    assert (unknown.reason, unknown.code) == ("MODEL_UNKNOWN", grpc.StatusCode.NOT_FOUND)
    assert ("10" if name == "digits" else "digits, other") in unknown.message


def test_a_broken_version_says_why(caller: Caller) -> None:
    broken = failure(lambda: caller.get_model("digits", "11"))
    assert broken.reason == "PLAN_VERSION_UNKNOWN" and "format 99" not in broken.message


def test_cost_is_estimated(caller: Caller) -> None:
    reply = caller.models.EstimateCost(model_pb2.EstimateCostRequest(model="digits"), timeout=5)
    cost = convert.cost_estimate_from_proto(reply)
    assert (cost.version, cost.predicted_ms, cost.low_ms, cost.high_ms) == ("10", 12.5, 10.0, 15.0)
    assert cost.counts == {"rotate": 4} and cost.dense_counts == {"rotate": 9} and cost.table_name == "fake table"


def test_health_of_the_server_and_of_each_service(caller: Caller) -> None:
    health = health_pb2_grpc.HealthStub(caller.channel)
    for service in ("", "secateur.v1.ModelService", "secateur.v1.KeyService", "secateur.v1.InferenceService"):
        reply = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError):
        health.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=5)


def test_reflection_lists_the_services(caller: Caller) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (reply,) = stub.ServerReflectionInfo(iter([request]), timeout=5)
    names = {s.name for s in reply.list_services_response.service}
    assert {
        "secateur.v1.ModelService",
        "secateur.v1.KeyService",
        "secateur.v1.InferenceService",
        "grpc.health.v1.Health",
    } <= names


def test_natural_order() -> None:
    versions = ["1.10", "10", "1.9", "2", "2-rc1", "1"]
    assert sorted(versions, key=natural_order) == ["1", "1.9", "1.10", "2", "2-rc1", "10"]
