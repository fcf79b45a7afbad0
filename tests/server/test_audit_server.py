"""The audit log of a real server: what its records hold, and what a full disk does to calls."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from authority import Issuer, Showing, write_jwks
from full_disk import Disk
from harness import KEYS, Caller, failure, make_config, sha256

from protos.gen.secateur.v1 import model_pb2
from server.identity.audit_chain import files_of, verify
from server.identity.settings import AuditConfig, IdentityConfig, JwtConfig
from server.running import RunningServer, start


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in files_of(directory) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def serve(tmp_path: Path, issuer: Issuer) -> Iterator[Callable[..., tuple[RunningServer, Caller]]]:
    running: list[RunningServer] = []

    def start_one(**changes: Any) -> tuple[RunningServer, Caller]:
        keys = write_jwks(tmp_path / "jwks.json", issuer.jwk)
        running.append(
            start(
                replace(
                    make_config(tmp_path),
                    identity=IdentityConfig("jwt"),
                    jwt=JwtConfig(keys, issuer=Issuer.NAME, audience=Issuer.AUDIENCE),
                    audit=replace(AuditConfig(), **changes),
                )
            )
        )
        return running[-1], shown(running[-1].address, issuer.token())

    yield start_one
    for server in running:
        server.stop()


def shown(address: str, token: str) -> Caller:
    return Caller(grpc.intercept_channel(grpc.insecure_channel(address), Showing(token)))


def test_each_action_is_recorded_with_who_what_and_outcome_and_no_secret(
    serve: Callable[..., tuple[RunningServer, Caller]], issuer: Issuer, tmp_path: Path
) -> None:
    server, caller = serve()
    key_set = caller.upload().key_set_id
    payload = b"echo:" + os.urandom(32).hex().encode()
    caller.infer(key_set, payload)
    expired = issuer.token(exp=1)
    failure(lambda: shown(server.address, expired).get_model())
    failure(lambda: caller.infer(key_set, payload, model="absent"))
    caller.models.ListModels(model_pb2.ListModelsRequest(), timeout=10)
    server.stop()

    found = {(r["action"], r.get("outcome")): r for r in records(tmp_path / "state" / "audit")}
    assert verify(tmp_path / "state" / "audit").problems == []
    inferred = found["InferenceService/Infer", "OK"]
    assert (inferred["tenant"], inferred["subject"], inferred["model"]) == ("acme", "user of acme", "digits")
    assert inferred["peer"].startswith("ipv4:127.0.0.1:") and inferred["ms"] > 0
    assert inferred["received_bytes"] > len(payload) and inferred["sent_bytes"] > 0
    assert inferred["key_set"] == found["KeyService/CreateUpload", "OK"]["key_set"] == sha256(KEYS)[:12]
    refused = found["ModelService/GetModel", "UNAUTHENTICATED"]
    assert refused["cause"] == "token expired" and "tenant" not in refused
    assert found["InferenceService/Infer", "MODEL_UNKNOWN"]["model"] == "absent"
    assert {"server.started", "server.stopped", "audit.opened"} <= {action for action, _ in found}
    assert not any("ListModels" in action for action, _ in found), "reads that tell nothing are no actions"
    text = "".join(path.read_text() for path in files_of(tmp_path / "state" / "audit"))
    for secret in (key_set, payload.decode()[5:], expired, expired.split(".")[2], issuer.token()[:40]):
        assert secret not in text


def test_a_full_disk_does_not_stop_serving(
    serve: Callable[..., tuple[RunningServer, Caller]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, caller = serve()
    Disk(monkeypatch).full = True
    for _ in range(3):
        assert caller.get_model().version == "10"


def test_a_required_record_that_cannot_be_written_refuses_the_call(
    serve: Callable[..., tuple[RunningServer, Caller]], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, caller = serve(required=True)
    disk, key_set, pids = Disk(monkeypatch), caller.upload().key_set_id, server.worker_pids()
    disk.full = True
    for _ in range(3):
        refused = failure(caller.get_model)
        assert (refused.reason, refused.subject) == ("SERVER_BUSY", "audit") and refused.retry_after_seconds
    assert failure(lambda: caller.infer(key_set, b"die:")).subject == "audit"
    assert server.worker_pids() == pids, "it was refused before it was evaluated"
    disk.full = False
    assert caller.get_model().version == "10"
