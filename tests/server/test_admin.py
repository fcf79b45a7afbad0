"""AdminService: who may use it, what it tells, and the commands that speak to it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from admin_caller import ADMIN, Administrator, administrator
from authority import Authority, Issuer, bearer, write_jwks
from harness import PARAMS, Caller, failure, make_config
from typer.testing import CliRunner

from protos.admin import VersionState
from protos.gen.secateur.v1 import admin_pb2, admin_pb2_grpc
from protos.status import from_rpc_error
from secateur.main import app
from server.admin.port import admin_problems
from server.checks import check
from server.errors import ConfigError
from server.running import RunningServer, start

Serve = Callable[..., tuple[RunningServer, Caller]]
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Caller, Administrator]]:
    config = make_config(tmp_path_factory.mktemp("admin"), admin=ADMIN)
    with (
        start(config) as server,
        grpc.insecure_channel(server.address) as channel,
        administrator(server.admin_address) as admin,
    ):
        yield server, Caller(channel), admin


def test_administration_is_off_by_default_and_never_on_the_clients_port(
    both: tuple[RunningServer, Caller, Administrator], caller: Caller
) -> None:
    for channel in (both[1].channel, caller.channel):
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Stats(admin_pb2.StatsRequest(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with administrator(both[0].admin_address) as admin, pytest.raises(grpc.RpcError) as caught:
        Caller(admin.channel).get_model()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_versions_are_listed_with_their_states(both: tuple[RunningServer, Caller, Administrator]) -> None:
    versions = both[2].versions()
    assert list(versions) == [("digits", "2"), ("digits", "10"), ("digits", "11"), ("other", "1")]
    default, broken = versions["digits", "10"], versions["digits", "11"]
    assert (default.state, default.is_default, default.max_key_bytes) == (VersionState.SERVED, True, 1 << 24)
    assert default.client_spec_digest == both[1].get_model("digits", "10").client_spec_digest
    assert not versions["digits", "2"].is_default
    assert (broken.state, broken.reason) == (VersionState.REFUSED, "PLAN_VERSION_UNKNOWN")
    assert "format 99" in broken.cause, "the operator is told what clients are not"


def test_statistics(both: tuple[RunningServer, Caller, Administrator]) -> None:
    _, caller, admin = both
    before = admin.stats()
    keys = caller.upload().key_set_id
    caller.infer(keys, b"echo:x")
    failure(lambda: caller.infer(keys, b"nonsense"))
    after = admin.stats()
    assert after.not_ready == () and after.build and after.uptime_seconds > before.uptime_seconds
    assert after.calls.get("BYTES_MALFORMED", 0) == before.calls.get("BYTES_MALFORMED", 0) + 1
    assert after.calls[""] > before.calls.get("", 0)
    assert after.queue_length == 0 and after.calls_under_way == 0
    assert [w.up for w in after.workers] == [True] and after.key_store_bytes > before.key_store_bytes


@pytest.mark.parametrize(
    ("address", "mode", "tls", "named"),
    [
        ("0.0.0.0:7", "anonymous", False, "anyone could administer"),
        ("0.0.0.0:7", "anonymous", True, "anyone could administer"),
        ("0.0.0.0:7", "jwt", False, "need TLS"),
        ("0.0.0.0:7", "jwt", True, ""),
        ("127.0.0.1:7", "anonymous", False, ""),
        ("unix:/x", "anonymous", False, ""),
        ("", "anonymous", False, ""),
    ],
)
def test_an_open_door_is_refused(tmp_path: Path, address: str, mode: str, tls: bool, named: str) -> None:
    config = make_config(tmp_path, admin={"address": address}, identity={"mode": mode}, tls={"enabled": tls})
    problems = list(admin_problems(config))
    assert bool(problems) == bool(named) and all(named in p for p in problems)
    if mode == "anonymous" and named and not tls:
        assert any(named in p for p in check(config))
        with pytest.raises(ConfigError, match=named):
            start(config)


def test_an_address_in_use_is_a_config_error(both: tuple[RunningServer, Caller, Administrator], tmp_path: Path) -> None:
    config = make_config(tmp_path, admin={"address": both[0].admin_address})
    assert any("admin.address" in p for p in check(config))
    with pytest.raises(ConfigError, match=r"cannot listen on admin\.address"):
        start(config)


def test_with_identity_only_administrators_administer(tmp_path: Path) -> None:
    issuer = Issuer()
    certificate, private_key = Authority().issue_server().write(tmp_path, "server")
    config = make_config(
        tmp_path,
        admin={"address": f"unix:{tmp_path}/admin.sock"},
        tls={"enabled": True, "certificate": certificate, "private_key": private_key},
        identity={"mode": "jwt"},
        jwt={
            "keys": write_jwks(tmp_path / "keys.json", issuer.jwk),
            "issuer": issuer.NAME,
            "audience": issuer.AUDIENCE,
            "admin_claim": "roles",
        },
    )
    with start(config) as server, grpc.insecure_channel(server.admin_address) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)

        def reason(**sent: Any) -> str:
            try:
                stub.ListVersions(admin_pb2.ListVersionsRequest(), timeout=5, **sent)
            except grpc.RpcError as error:
                return from_rpc_error(error).reason
            return ""

        assert reason() == "UNAUTHENTICATED"
        assert reason(metadata=bearer(issuer.token())) == "PERMISSION_DENIED"
        token = issuer.token(roles=["reader", "secateur-admin"])
        assert reason(metadata=bearer(token)) == ""
        (tmp_path / "token").write_text(token + "\n")
        told = run("--address", server.admin_address, "--token-file", tmp_path / "token", "versions", "--json")
        assert len(told["versions"]) == 4


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["admin", *map(str, arguments)])


def run(*arguments: object) -> Any:
    """The one JSON object that a command prints."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_commands_end_to_end(serve: Serve, tmp_path: Path) -> None:
    server, caller = serve(admin=ADMIN)
    at = ("--address", server.admin_address)
    directory = tmp_path / "models" / "digits" / "12"
    directory.mkdir()
    (directory / "model.json").write_text(json.dumps({"params": PARAMS}))
    assert run("seal", directory, "--json")["files"] == 1
    assert run(*at, "load", "digits", "12", "--json")["is_default"] is True
    assert run(*at, "default", "digits", "10", "--json")["default_version"] == "10"
    assert run(*at, "unload", "digits", "12", "--json") == {"model": "digits", "version": "12"}
    listed = {(v["model"], v["version"]): v["state"] for v in run(*at, "versions", "--json")["versions"]}
    assert listed["digits", "12"] == "present" and listed["digits", "10"] == "served"
    caller.upload()
    assert run("backup", tmp_path / "copy", "--state", tmp_path / "state", "--json")["layout_version"] >= 1
    assert run("restore", tmp_path / "copy", "--state", tmp_path / "new", "--json")["files"] > 1
    for command, word in (("versions", "digits"), ("stats", "key store"), ("drain", "draining")):
        said = invoke(*at, command)
        assert said.exit_code == 0 and word in said.stdout


def test_the_commands_name_what_is_wrong(both: tuple[RunningServer, Caller, Administrator], tmp_path: Path) -> None:
    at = ("--address", both[0].admin_address)
    for arguments, said in (
        ((*at, "load", "digits", "99"), "no such directory"),
        ((*at, "unload", "digits", "10"), "another default first"),
        (("versions",), "admin.address"),
        ((*at, "--token-file", tmp_path / "token", "versions"), "over TLS or a unix socket"),
        (("--address", f"unix:{tmp_path}/nobody", "--timeout", "5", "stats"), "error"),
    ):
        result = invoke(*arguments)
        assert result.exit_code != 0 and said in " ".join(result.output.replace("│", " ").split())


def test_a_clients_flood_does_not_crowd_out_the_operator(serve: Serve) -> None:
    server, caller = serve(limits={"max_concurrent_rpcs": 1}, admin=ADMIN)
    request = caller.request(caller.upload().key_set_id, b"sleep:0.5")
    for _ in range(50):  # the place of an RPC is free a moment after its client has heard of its end
        under_way = caller.inference.Infer.future(request, timeout=20)
        time.sleep(0.02)
        if not under_way.done():
            break
    with administrator(server.admin_address) as admin:
        assert admin.stats().build
    assert under_way.result().ciphertexts == b"slept"
