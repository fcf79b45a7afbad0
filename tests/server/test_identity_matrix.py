"""Every RPC against every credential that does not hold, and one tenant against everything of another's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from authority import Authority, Issuer, Pair, bearer, channel
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tenancy import Service, tenants_served

from protos.gen.secateur.v1 import admin_pb2
from protos.status import from_rpc_error
from server.app import SERVICES
from server.identity.audit_chain import files_of, verify

ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name


def methods(*services: str) -> list[Any]:
    pool = descriptor_pool.Default()  # type: ignore[no-untyped-call]
    return [method for service in services for method in pool.FindServiceByName(service).methods]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with tenants_served(tmp_path_factory.mktemp("tenants")) as served:
        yield served


def call(line: grpc.Channel, method: Any, metadata: Any = None) -> tuple[str, str]:
    """(reason, message) of a call with an empty request; ("", "") for an answer."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    request: Any = iter([b""]) if method.client_streaming else b""
    kind = {
        (False, False): line.unary_unary,
        (True, False): line.stream_unary,
        (False, True): line.unary_stream,
        (True, True): line.stream_stream,
    }[method.client_streaming, method.server_streaming]
    try:
        answer = kind(path)(request, timeout=20, metadata=metadata)
        for _ in answer if method.server_streaming else ():
            pass
    except grpc.RpcError as error:
        found = from_rpc_error(error)
        return found.reason, found.message
    return "", ""


BAD_TOKENS: dict[str, Callable[[Issuer], Any]] = {
    "no credential": lambda issuer: None,
    "no token": lambda issuer: (("authorization", "Bearer"),),
    "a password": lambda issuer: (("authorization", "Basic YTpi"),),
    "garbage": lambda issuer: bearer("x.y.z"),
    "expired": lambda issuer: bearer(issuer.token(exp=1)),
    "not yet valid": lambda issuer: bearer(issuer.token(nbf=1 << 40)),
    "wrong issuer": lambda issuer: bearer(issuer.token(iss="https://other.example")),
    "wrong audience": lambda issuer: bearer(issuer.token(aud="another service")),
    "another's key": lambda issuer: bearer(Issuer().token()),
    "no signature": lambda issuer: bearer("eyJhbGciOiJub25lIn0." + issuer.token().split(".")[1] + "."),
    "no tenant": lambda issuer: bearer(issuer.token(None)),
    "the tenant of those without": lambda issuer: bearer(issuer.token("anonymous")),
    "two tokens": lambda issuer: bearer(issuer.token()) + bearer(issuer.token()),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
def test_every_rpc_refuses_a_token_that_does_not_hold(service: Service, name: str) -> None:
    metadata = BAD_TOKENS[name](service.issuer)
    said = set()
    with channel(service.server.address, service.ours) as line, grpc.insecure_channel(service.admin) as admin:
        said |= {call(line, method, metadata) for method in methods(*SERVICES)}
        said |= {call(admin, method, metadata) for method in methods(ADMIN)}
    assert len(said) == 1, "one answer for every cause and method"
    ((reason, message),) = said
    assert reason == "UNAUTHENTICATED" and "expired" not in message and name not in message


@pytest.mark.parametrize("name", ["no certificate", "wrong CA", "expired", "in the clear"])
def test_no_rpc_gets_through_without_a_certificate_that_holds(service: Service, name: str) -> None:
    pairs: dict[str, Pair | None] = {
        "no certificate": None,
        "wrong CA": Authority("another").issue(),
        "expired": service.ours.issue(days=(-2, -1)),
    }
    with ExitStack() as opened:
        line = (
            channel(service.mutual, service.ours, pairs[name])
            if name in pairs
            else grpc.insecure_channel(service.server.address)
        )
        opened.enter_context(line)
        metadata = bearer(service.issuer.token())
        found = {call(line, method, metadata)[0] for method in methods(*SERVICES)}
    assert found == {"SERVER_UNREACHABLE"}


def test_every_rpc_admits_a_credential_that_holds(service: Service) -> None:
    refusals = {"UNAUTHENTICATED", "PERMISSION_DENIED", "SERVER_UNREACHABLE", "INTERNAL"}
    with channel(service.server.address, service.ours) as line:
        metadata = bearer(service.issuer.token())
        assert not {call(line, method, metadata)[0] for method in methods(*SERVICES)} & refusals
    with channel(service.mutual, service.ours, service.ours.issue()) as line:
        assert not {call(line, method)[0] for method in methods(*SERVICES)} & refusals


def test_only_an_administrator_administers(service: Service) -> None:
    with grpc.insecure_channel(service.admin) as line:
        plain, admin = bearer(service.issuer.token()), bearer(service.issuer.token(role="admin"))
        assert {call(line, method, plain)[0] for method in methods(ADMIN)} == {"PERMISSION_DENIED"}
        harmless = [method for method in methods(ADMIN) if method.name != "Drain"]
        assert not {call(line, method, admin)[0] for method in harmless} & {"UNAUTHENTICATED", "PERMISSION_DENIED"}


def test_health_is_open_but_for_models_and_watching(service: Service) -> None:
    def status(metadata: Any, name: str) -> str:
        stub = health_pb2_grpc.HealthStub(line)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10, metadata=metadata)
        except grpc.RpcError as error:
            return str(error.code().name)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))

    def watched(metadata: Any, name: str) -> str:
        stream = health_pb2_grpc.HealthStub(line).Watch(
            health_pb2.HealthCheckRequest(service=name), timeout=10, metadata=metadata
        )
        try:
            return str(health_pb2.HealthCheckResponse.ServingStatus.Name(next(stream).status))
        except grpc.RpcError as error:
            return str(error.code().name)
        finally:
            stream.cancel()

    narrow, wide = bearer(service.issuer.token("narrow")), bearer(service.issuer.token())
    with channel(service.server.address, service.ours) as line:
        for nobody in (None, bearer("x.y.z")):
            assert status(nobody, "") == status(nobody, "liveness") == "SERVING"
            assert status(nobody, "model/digits") == status(nobody, "model/absent") == "NOT_FOUND"
            assert watched(nobody, "") == watched(nobody, "model/digits") == "UNAUTHENTICATED"
        assert status(wide, "model/digits") == watched(wide, "model/digits") == watched(wide, "") == "SERVING"
        assert status(narrow, "model/digits") == status(narrow, "model/absent") == "NOT_FOUND"
        assert watched(narrow, "model/digits") == watched(narrow, "model/absent") == "SERVICE_UNKNOWN"
        assert status(narrow, "model/other") == "SERVING"


def test_the_log_of_the_matrix_is_whole(service: Service, tmp_path: Path) -> None:

    directory = Path(service.mutual.removeprefix("unix:")).parent / "state" / "audit"
    verdict = verify(directory)
    assert verdict.problems == [] and verdict.records > 100
    text = "".join(path.read_text() for path in files_of(directory))
    assert '"cause":"token expired"' in text and '"outcome":"UNAUTHENTICATED"' in text and "eyJ" not in text
