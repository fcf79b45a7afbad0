"""Every RPC against every credential that does not hold, and one tenant against everything of another's."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from authority import Authority, Issuer, Pair, Showing, bearer, channel, write_jwks
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import KEYS, Caller, failure, make_config, spec_digest

from protos.gen.inference import open_inference_pb2, open_inference_pb2_grpc
from protos.gen.secateur.v1 import admin_pb2, inference_pb2, keys_pb2, model_pb2
from protos.status import from_rpc_error
from server.admin.settings import AdminConfig
from server.app import SERVICES
from server.identity.settings import AuditConfig, IdentityConfig, JwtConfig, TenantConfig, TlsConfig
from server.running import RunningServer, start

ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name


def methods(*services: str) -> list[Any]:
    pool = descriptor_pool.Default()  # type: ignore[no-untyped-call]
    return [method for service in services for method in pool.FindServiceByName(service).methods]


@dataclass
class Service:
    """A server that takes a token on one port and a certificate on another, and an administrator's token on a third."""

    server: RunningServer
    ours: Authority
    issuer: Issuer
    mutual: str
    admin: str

    def caller(self, tenant: str, **claims: Any) -> Caller:
        line = channel(self.server.address, self.ours)
        return Caller(grpc.intercept_channel(line, Showing(self.issuer.token(tenant, **claims))))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root, ours, issuer = tmp_path_factory.mktemp("matrix"), Authority(), Issuer()
    certificate, key = ours.issue_server().write(root, "server")
    (root / "clients.pem").write_bytes(ours.pem)
    mutual, admin = f"unix:{root}/mutual", f"unix:{root}/admin"
    config = replace(
        make_config(root),
        tls=TlsConfig(True, certificate, key, root / "clients.pem", "optional", mutual),
        identity=IdentityConfig("either", tenants={"narrow": TenantConfig(("other",))}),
        jwt=JwtConfig(
            write_jwks(root / "jwks.json", issuer.jwk),
            issuer=Issuer.NAME,
            audience=Issuer.AUDIENCE,
            admin_claim="role",
            admin_value="admin",
        ),
        admin=AdminConfig(address=admin),
        audit=AuditConfig(max_refusals_per_second=1e6),
    )
    with start(config) as server:
        yield Service(server, ours, issuer, mutual, admin)


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


def refused(act: Callable[[], object]) -> tuple[str, str]:
    found = failure(act)
    return found.reason, found.message


def test_a_tenant_cannot_use_or_see_anothers_keys(service: Service) -> None:
    acme, other = service.caller("acme"), service.caller("other")
    key_set = acme.upload()
    handle = acme.keys.ListKeySets(keys_pb2.ListKeySetsRequest(), timeout=10).key_sets[0].handle
    acts: dict[str, Callable[[Caller, str, str], object]] = {
        "infer": lambda c, i, h: c.infer(i, b"echo:x"),
        "get": lambda c, i, h: c.keys.GetKeySet(keys_pb2.GetKeySetRequest(key_set_id=i, handle=h), timeout=10),
        "touch": lambda c, i, h: c.keys.TouchKeySet(keys_pb2.TouchKeySetRequest(key_set_id=i, handle=h), timeout=10),
        "delete": lambda c, i, h: c.keys.DeleteKeySet(keys_pb2.DeleteKeySetRequest(key_set_id=i, handle=h), timeout=10),
    }
    for name, act in acts.items():
        unknown = refused(lambda act=act: act(other, "00" * 16, ""))  # type: ignore[misc]
        assert unknown[0] == "KEY_SET_UNKNOWN", name
        assert refused(lambda act=act: act(other, key_set.key_set_id, "")) == unknown, name  # type: ignore[misc]
        if name != "infer":
            assert refused(lambda act=act: act(other, "", handle)) == unknown, name  # type: ignore[misc]
    assert not other.keys.ListKeySets(keys_pb2.ListKeySetsRequest(), timeout=10).key_sets
    assert acme.infer(key_set.key_set_id, b"echo:x").ciphertexts.endswith(b"|x"), "it is still there for its own"


def test_a_tenant_learns_nothing_from_offering_anothers_bytes(service: Service) -> None:
    """Stored bytes spare their own tenant an upload; another one uploads as if they were not there."""
    acme, other = service.caller("acme"), service.caller("dedup")
    assert acme.upload() and acme.offer().WhichOneof("result") == "key_set"
    assert other.offer().WhichOneof("result") == "upload"


def test_a_tenant_cannot_touch_anothers_upload(service: Service) -> None:
    acme, other = service.caller("uploader"), service.caller("other")
    upload_id = acme.begin(KEYS + b"more")
    acts: list[Callable[[str], object]] = [
        other.offset,
        other.commit,
        lambda i: other.send(i, b"x"),
        lambda i: other.keys.UploadChunk(keys_pb2.UploadChunkRequest(upload_id=i, data=b"x"), timeout=10),
    ]
    for act in acts:
        unknown = refused(lambda act=act: act("00" * 16))  # type: ignore[misc]
        assert unknown[0] == "UPLOAD_UNKNOWN"
        assert refused(lambda act=act: act(upload_id)) == unknown  # type: ignore[misc]
    assert acme.offset(upload_id) == 0


def test_equal_requests_of_two_tenants_are_two(service: Service) -> None:
    """Otherwise a reply, or how fast it comes, would tell that somebody else asked the same."""
    acme, other = service.caller("acme"), service.caller("twin")
    ids, request_id = (acme.upload().key_set_id, other.upload().key_set_id), str(uuid.uuid4())
    first, again = (acme.infer(ids[0], b"echo:same", request_id=request_id) for _ in range(2))
    assert first == again, "one evaluation for one tenant"
    assert other.infer(ids[1], b"echo:same", request_id=request_id).timings != first.timings


def test_a_tenant_cannot_watch_cancel_or_collect_anothers_job(service: Service) -> None:
    acme, other = service.caller("acme"), service.caller("other")
    asked = inference_pb2.InferRequest(
        model="digits", key_set_id=acme.upload().key_set_id, ciphertexts=b"echo:x", request_id=str(uuid.uuid4())
    )
    job_id = acme.inference.SubmitJob(inference_pb2.SubmitJobRequest(call=asked), timeout=10).job_id
    acts: list[Callable[[Caller, str], object]] = [
        lambda c, i: list(c.inference.WatchJob(inference_pb2.WatchJobRequest(job_id=i), timeout=10)),
        lambda c, i: c.inference.GetResult(inference_pb2.GetResultRequest(job_id=i), timeout=10),
        lambda c, i: c.inference.CancelJob(inference_pb2.CancelJobRequest(job_id=i), timeout=10),
    ]
    for act in acts:
        unknown = refused(lambda act=act: act(other, "00" * 16))  # type: ignore[misc]
        assert unknown[0] == "JOB_UNKNOWN"
        assert refused(lambda act=act: act(other, job_id)) == unknown  # type: ignore[misc]
    assert acts[0](acme, job_id) and acts[1](acme, job_id)


def test_a_model_that_a_tenant_may_not_use_is_unknown_to_it(service: Service) -> None:
    narrow, wide = service.caller("narrow"), service.caller("acme")
    listed = {
        c: [m.name for m in c_.models.ListModels(model_pb2.ListModelsRequest(), timeout=10).models]
        for c, c_ in (("narrow", narrow), ("wide", wide))
    }
    assert listed == {"narrow": ["other"], "wide": ["digits", "other"]}
    digits, absent = ({"model": name} for name in ("digits", "absent"))
    key_set_id = wide.upload().key_set_id
    acts: list[Callable[[dict[str, str]], object]] = [
        lambda m: narrow.get_model(m["model"]),
        lambda m: narrow.get_model(m["model"], "10"),
        lambda m: narrow.get_model(m["model"], "11"),
        lambda m: narrow.models.EstimateCost(model_pb2.EstimateCostRequest(**m), timeout=10),
        lambda m: narrow.infer(key_set_id, b"echo:x", **m),
        lambda m: narrow.infer(key_set_id, b"echo:x", client_spec_digest=spec_digest(), **m),
        lambda m: narrow.inference.SubmitJob(
            inference_pb2.SubmitJobRequest(call=inference_pb2.InferRequest(ciphertexts=b"x", **m)), timeout=10
        ),
    ]
    for act in acts:
        unknown = refused(lambda act=act: act(absent))  # type: ignore[misc]
        assert unknown[0] == "MODEL_UNKNOWN"
        reason, message = refused(lambda act=act: act(digits))  # type: ignore[misc]
        assert (reason, message.replace("digits", "absent")) == unknown
    unknown = refused(lambda: narrow.offer(client_spec_digest="00" * 32))
    reason, message = refused(lambda: narrow.offer())
    assert (reason, message.replace(spec_digest()[:12], "00" * 6)) == unknown


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


def test_open_inference_clients_meet_the_same_rules(service: Service) -> None:
    narrow = channel(service.server.address, service.ours)
    metadata = bearer(service.issuer.token("narrow"))
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(narrow)

    def ready(name: str) -> bool:
        request = open_inference_pb2.ModelReadyRequest(name=name)
        return bool(stub.ModelReady(request, timeout=10, metadata=metadata).ready)

    def described(name: str) -> tuple[str, str]:
        request = open_inference_pb2.ModelMetadataRequest(name=name)
        reason, message = refused(lambda: stub.ModelMetadata(request, timeout=10, metadata=metadata))
        return reason, message.replace(name, "?")

    assert ready("other") and not ready("digits") and not ready("absent")
    assert described("digits") == described("absent")
    narrow.close()


def test_the_log_of_the_matrix_is_whole(service: Service, tmp_path: Path) -> None:
    from server.identity.audit_chain import files_of, verify

    directory = Path(service.mutual.removeprefix("unix:")).parent / "state" / "audit"
    verdict = verify(directory)
    assert verdict.problems == [] and verdict.records > 100
    text = "".join(path.read_text() for path in files_of(directory))
    assert '"cause":"token expired"' in text and '"outcome":"UNAUTHENTICATED"' in text and "eyJ" not in text
