"""Certificates and tokens at a real server: who gets in, as whom, and that files are followed without a restart."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from authority import SERVER, Authority, Issuer, Pair, bearer, channel, write_jwks
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from harness import Caller, failure
from tenancy import configured

from protos.gen.secateur.v1 import model_pb2, model_pb2_grpc
from server.identity.certificates import of_certificate
from server.identity.policy import Policy, is_loopback
from server.identity.refusal import NotAuthenticated, NotPermitted
from server.identity.settings import IdentityConfig, JwtConfig, TenantConfig
from server.running import RunningServer, start


@pytest.fixture(scope="module")
def ours() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def serving(tmp_path: Path, ours: Authority, issuer: Issuer) -> Iterator[Callable[..., RunningServer]]:
    running: list[RunningServer] = []

    def serve(**settings: Any) -> RunningServer:
        running.append(start(configured(tmp_path, ours, issuer, **settings)))
        return running[-1]

    yield serve
    for server in running:
        server.stop()


def listed(line: grpc.Channel, token: str | None = None) -> str:
    """ "" when the server answers a call, and the reason when it does not."""
    stub = model_pb2_grpc.ModelServiceStub(line)
    metadata = bearer(token) if token is not None else None
    try:
        stub.ListModels(model_pb2.ListModelsRequest(), timeout=10, metadata=metadata)
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)
        return str(error.code().name)
    return ""


def test_certificates_are_asked_for_and_followed_as_files_change(
    serving: Callable[..., RunningServer], ours: Authority, tmp_path: Path
) -> None:
    server = serving(client_auth="required", mode="mtls")
    foreign = Authority("another root")

    def said(pair: Pair | None, trusted: Authority = ours) -> str:
        with channel(server.address, trusted, pair) as line:
            return listed(line)

    good = ours.issue()
    assert said(good) == ""
    refused_by_tls = {
        "none": None,
        "foreign": foreign.issue(),
        "expired": ours.issue(days=(-2, -1)),
        "not yet valid": ours.issue(days=(1, 2)),
        "a server's": ours.issue(use=SERVER),
        "the server's own": ours.issue_server(),
    }
    assert {name: said(pair) for name, pair in refused_by_tls.items()} == dict.fromkeys(refused_by_tls, "UNAVAILABLE")
    assert said(ours.issue(organizations=())) == "UNAUTHENTICATED"
    assert said(ours.issue(organizations=("acme", "other"))) == "UNAUTHENTICATED"
    assert said(ours.issue(organizations=("anonymous",))) == "UNAUTHENTICATED"

    foreign.issue_server().write(tmp_path, "server")  # renewed, by another authority, as the clients' root is
    (tmp_path / "clients.pem").write_bytes(foreign.pem)
    assert said(foreign.issue(), foreign) == "" and said(good, foreign) == "UNAVAILABLE"
    (tmp_path / "server.pem").write_bytes(b"half")
    assert said(foreign.issue(), foreign) == "", "the last that fit together stay"


def test_a_token_gets_in_and_health_needs_none(
    serving: Callable[..., RunningServer], issuer: Issuer, ours: Authority
) -> None:
    server = serving(mode="jwt")
    with channel(server.address, ours) as line:
        assert listed(line, issuer.token()) == ""
        assert listed(line) == listed(line, "x.y.z") == listed(line, issuer.token(aud="x")) == "UNAUTHENTICATED"
        probe = health_pb2_grpc.HealthStub(line).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert probe.status == health_pb2.HealthCheckResponse.SERVING
        assert reflected(line, None) == "UNAUTHENTICATED" and reflected(line, issuer.token()) == ""


def reflected(line: grpc.Channel, token: str | None) -> str:
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(line)
    metadata = bearer(token) if token is not None else None
    try:
        (reply,) = stub.ServerReflectionInfo(iter([asked]), timeout=10, metadata=metadata)
        assert reply.list_services_response.service
    except grpc.RpcError as error:
        return str(error.code().name)
    return ""


def test_either_credential_is_enough_on_its_port(
    serving: Callable[..., RunningServer], issuer: Issuer, ours: Authority, tmp_path: Path
) -> None:
    mutual = f"unix:{tmp_path}/mutual"
    server = serving(client_auth="optional", mutual_address=mutual, mode="either", open_reflection=True)
    with channel(server.address, ours, ours.issue()) as line:
        assert listed(line) == "UNAUTHENTICATED", "this port asks for no certificate, so none is seen"
        assert listed(line, issuer.token()) == "" and reflected(line, None) == ""
    with channel(mutual, ours, ours.issue()) as line:
        assert listed(line) == listed(line, issuer.token()) == ""
        assert listed(line, issuer.token("other")) == "UNAUTHENTICATED", "two credentials must agree"
        assert listed(line, "x.y.z") == "UNAUTHENTICATED", "a token that does not hold is not overlooked"
    with channel(mutual, ours) as line:
        assert listed(line, issuer.token()) == "UNAVAILABLE"


def test_both_credentials_are_needed_and_agree(
    serving: Callable[..., RunningServer], issuer: Issuer, ours: Authority
) -> None:
    server = serving(client_auth="required", mode="both")
    with channel(server.address, ours, ours.issue()) as line:
        assert listed(line, issuer.token()) == ""
        assert listed(line) == listed(line, issuer.token("other")) == "UNAUTHENTICATED"
    with channel(server.address, ours) as line:
        assert listed(line, issuer.token()) == "UNAVAILABLE"


def shown(pair: Pair) -> dict[str, list[bytes]]:
    return {"x509_pem_cert": [pair.certificate], "transport_security_type": [b"ssl"]}


def test_a_tenant_is_read_by_the_configured_rule(ours: Authority) -> None:
    uri = "spiffe://example.org/tenant/acme/worker/7"
    pair = ours.issue(organizations=("Acme Ltd.",), common_name="w7", uris=(uri, "https://other.example/x"))
    by_uri = IdentityConfig("mtls", certificate_tenant="uri", uri_prefix="spiffe://example.org/tenant/")
    found = {
        rule.certificate_tenant: of_certificate(shown(pair), rule)
        for rule in (IdentityConfig("mtls"), IdentityConfig("mtls", certificate_tenant="common_name"), by_uri)
    }
    assert {name: f.tenant for name, f in found.items() if f} == {
        "organization": "Acme Ltd.",
        "common_name": "w7",
        "uri": "acme",
    }
    assert all(f and f.subject == uri for f in found.values())
    assert of_certificate({}, by_uri) is None
    for uris in (
        (),
        ("spiffe://evil.org/tenant/acme",),
        ("spiffe://example.org/tenant/a", "spiffe://example.org/tenant/b"),
    ):
        with pytest.raises(NotAuthenticated):
            of_certificate(shown(ours.issue(uris=uris)), by_uri)


def test_a_certificate_that_expires_on_an_open_connection_is_refused(ours: Authority) -> None:
    authentication = shown(ours.issue(days=(-1, 1)))
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1, minutes=1)
    assert of_certificate(authentication, IdentityConfig("mtls"))
    with pytest.raises(NotAuthenticated) as caught:
        of_certificate(authentication, IdentityConfig("mtls"), later)
    assert caught.value.cause == "certificate expired"


def context(peer: str, authentication: dict[str, list[bytes]], token: str | None = None) -> Any:
    metadata = bearer(token) if token else ()
    return SimpleNamespace(peer=lambda: peer, auth_context=lambda: authentication, invocation_metadata=lambda: metadata)


def test_a_token_in_the_clear_is_refused_beyond_loopback(issuer: Issuer, tmp_path: Path) -> None:
    keys = write_jwks(tmp_path / "jwks.json", issuer.jwk)
    policy = Policy(IdentityConfig("jwt"), JwtConfig(keys, issuer=Issuer.NAME, audience=Issuer.AUDIENCE))
    token = issuer.token()
    for peer in ("ipv4:127.0.0.1:5", "ipv6:%5B::1%5D:5", "unix:", "unix:/run/x"):
        assert policy.caller(context(peer, {}, token)).tenant == "acme"
    for peer in ("ipv4:10.0.0.1:5", "ipv6:%5B2001:db8::1%5D:5", "ipv4:127.0.0.1.evil:5", "", "localhost.evil:5"):
        with pytest.raises(NotAuthenticated) as caught:
            policy.caller(context(peer, {}, token))
        assert caught.value.cause == "token over a channel without TLS"
    assert policy.caller(context("ipv4:10.0.0.1:5", {"transport_security_type": [b"ssl"]}, token))


def test_tenants_may_be_listed_and_administrators_named(issuer: Issuer, ours: Authority, tmp_path: Path) -> None:
    keys = write_jwks(tmp_path / "jwks.json", issuer.jwk)
    jwt = JwtConfig(keys, issuer=Issuer.NAME, audience=Issuer.AUDIENCE, admin_claim="role", admin_value="admin")
    config = IdentityConfig(
        "either", admin_subjects=("acme/root",), only_listed_tenants=True, tenants={"acme": TenantConfig(("digits",))}
    )
    policy = Policy(config, jwt)
    root, plain = shown(ours.issue(common_name="root")), shown(ours.issue())
    usurper = of_certificate(shown(ours.issue(("other",), "root")), config)
    assert usurper and not usurper.names & set(config.admin_subjects), "a name counts with its tenant only"
    loop = "unix:"
    assert not policy.caller(context(loop, plain)).admin and policy.caller(context(loop, root)).admin
    assert policy.caller(context(loop, {}, issuer.token(role="admin"))).admin
    assert policy.caller(context(loop, root, issuer.token(role="admin"))).admin
    for authentication, role in ((root, "user"), (plain, "admin")):
        assert not policy.caller(context(loop, authentication, issuer.token(role=role))).admin, "both must say so"
    assert policy.caller(context(loop, plain)).models == {"digits"}
    assert policy.caller(context(loop, root)).models is None, "who loads and unloads models sees all of them"
    with pytest.raises(NotPermitted):
        policy.caller(context(loop, {}, issuer.token("other")))
    for name in ("anonymous", "", " acme", "a\nb", "a/b", "a" * 129):
        with pytest.raises(NotAuthenticated):
            policy.caller(context(loop, {}, issuer.token(name)))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/x"])
def test_what_is_loopback(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.1.1.1:1", "localhost.evil:1", "127.0.0.1", ""])
def test_what_is_not_loopback(address: str) -> None:
    assert not is_loopback(address)


def test_a_plaintext_port_never_sees_a_certificate(serving: Callable[..., RunningServer]) -> None:
    server = serving(mode="jwt")
    with grpc.insecure_channel(server.address) as line:
        assert failure(lambda: Caller(line).get_model()).reason == "SERVER_UNREACHABLE"
