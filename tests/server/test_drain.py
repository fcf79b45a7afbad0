"""Draining: nothing is lost that was let in, what is not let in is told to come back, and probes see it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from admin_caller import ADMIN, administrator
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import Caller, failure, free_port, make_config, make_models

from benchmarks.service.drain import changes_under_load
from server.connections import cut
from server.readiness import Readiness
from server.running import RunningServer, start, start_subprocess

Serve = Callable[..., tuple[RunningServer, Caller]]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def status_of(caller: Caller, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(caller.channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_a_draining_server_finishes_its_calls_and_sends_new_ones_away(serve: Serve) -> None:
    server, caller = serve(admin=ADMIN)
    keys = caller.upload().key_set_id
    under_way = caller.inference.Infer.future(caller.request(keys, b"sleep:1.0"), timeout=20)
    with administrator(server.admin_address) as admin:
        wait_for(lambda: admin.stats().calls_under_way == 1)
        assert admin.drain().calls_under_way == 1
        wait_for(lambda: status_of(caller, "") == NOT_SERVING)
        for service in ("readiness", "secateur.v1.InferenceService", "model/digits"):
            assert status_of(caller, service) == NOT_SERVING
        assert status_of(caller, "liveness") == SERVING
        assert admin.stats().not_ready == ("draining",)
        for call in (lambda: caller.infer(keys, b"echo:x"), caller.get_model, caller.offer):
            refused = failure(call)
            assert (refused.reason, refused.code) == ("SERVER_DRAINING", grpc.StatusCode.UNAVAILABLE)
            assert refused.retry_after_seconds is not None and refused.retry_after_seconds > 0
    assert under_way.result().ciphertexts == b"slept"
    wait_for(lambda: failure(caller.get_model).reason == "SERVER_UNREACHABLE")


def test_calls_that_outlast_the_drain_time_are_given_up(tmp_path: Path) -> None:
    config = replace(make_config(tmp_path, admin=ADMIN), drain_seconds=0.2)
    with start(config) as server, grpc.insecure_channel(server.address) as channel:
        caller = Caller(channel)
        under_way = caller.inference.Infer.future(caller.request(caller.upload().key_set_id, b"sleep:60"), timeout=90)
        with administrator(server.admin_address) as admin:
            wait_for(lambda: admin.stats().calls_under_way == 1)
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 10
        assert given_up(under_way)


def given_up(call: grpc.Future) -> bool:
    with pytest.raises(grpc.RpcError) as caught:
        call.result()
    return caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_a_health_watcher_sees_the_drain_and_does_not_delay_it(serve: Serve) -> None:
    server, caller = serve()
    watch = health_pb2_grpc.HealthStub(caller.channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
    assert next(watch).status == SERVING
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(next, watch)
        started = time.monotonic()
        server.stop()
        assert told.result().status == NOT_SERVING
    assert time.monotonic() - started < 4, "the drain time is 5 s, for calls that are under way"


def test_a_server_without_a_worker_is_not_ready_until_one_is_back(serve: Serve) -> None:
    server, caller = serve()
    assert status_of(caller, "readiness") == SERVING
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    wait_for(lambda: status_of(caller, "readiness") == NOT_SERVING)
    assert status_of(caller, "liveness") == SERVING
    assert caller.infer(caller.upload().key_set_id, b"echo:x").ciphertexts, "the next call finds it dead, and a new one"
    wait_for(lambda: status_of(caller, "readiness") == SERVING)


async def test_readiness_follows_its_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.readiness._PROBE_SECONDS", 0.05)
    health = {"disk": True}
    stuck, asked = threading.Event(), []

    def slow() -> bool:
        asked.append(1)
        return stuck.wait(20)

    def broken() -> bool:
        raise OSError("gone")

    probes: dict[str, Callable[[], bool]] = {"disk": lambda: health["disk"]}
    readiness = Readiness(("a.Service",), lambda: ["digits"], probes)
    assert readiness.problems == ("disk",), "until somebody looked"
    await readiness.look()
    assert readiness.ready and readiness.model_ready("digits") and not readiness.model_ready("other")
    health["disk"] = False
    await readiness.look()
    assert readiness.problems == ("disk",) and not readiness.model_ready("digits")
    troubled = Readiness((), list, {"slow": slow, "broken": broken})
    await troubled.look()
    await troubled.look()
    assert troubled.problems == ("broken", "slow") and len(asked) == 1, "a probe that hangs is not asked again"
    stuck.set()
    await asyncio.sleep(0.01)
    await troubled.look()
    assert troubled.problems == ("broken",)
    await troubled.drain()
    assert troubled.problems == ("draining", "broken")


def test_cutting_breaks_the_connections_of_an_address_and_nothing_else() -> None:
    def pair(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
        near = socket.create_connection(listener.getsockname())
        return near, listener.accept()[0]

    with socket.create_server(("127.0.0.1", 0)) as cut_off, socket.create_server(("127.0.0.1", 0)) as other:
        (near, far), (spared, spared_far) = pair(cut_off), pair(other)
        with near, far, spared, spared_far:
            far.sendall(b"parting")
            before = len(os.listdir("/proc/self/fd"))
            assert cut([f"127.0.0.1:{cut_off.getsockname()[1]}", "", "unix:/nobody"]) == 1
            assert len(os.listdir("/proc/self/fd")) == before, "no descriptor is left open"
            near.settimeout(5)
            assert near.recv(100) == b"parting" and near.recv(100) == b"", "what was sent arrives, then the end"
            spared_far.sendall(b"on")
            assert spared.recv(100) == b"on"


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Callable[[], RunningServer]]:
    """Start a server in a process of its own, always on the same port and state: what a supervisor does."""
    make_models(tmp_path / "models")
    port = free_port()
    (tmp_path / "server.toml").write_text(
        f'address = "127.0.0.1:{port}"\nmodels = "models"\nstate = "state"\ndrain_seconds = 20.0\nlog_level = "error"\n'
        f'[admin]\naddress = "unix:{tmp_path}/admin.sock"\n'
        '[engine]\nworkers = 1\nbackend = "fake"\nruntime = "fake_runtime"\n'
    )
    started: list[RunningServer] = []

    def start_one() -> RunningServer:
        started.append(start_subprocess(tmp_path / "server.toml"))
        return started[-1]

    yield start_one
    for server in started:
        process = server.process
        if process is not None and process.poll() is None:
            process.kill()
        server.stop()


def test_restarts_and_version_changes_under_load_fail_no_request(tmp_path: Path) -> None:
    report = changes_under_load(tmp_path, count=1, clients=4)
    assert report["ok"] and report["came_back"] and report["versions"] == 2, report


def test_a_second_signal_ends_at_once(apart: Callable[[], RunningServer], tmp_path: Path) -> None:
    server = apart()
    assert server.process is not None
    assert (tmp_path / "admin.sock").stat().st_mode & 0o777 == 0o600, "for the server's user alone"
    with grpc.insecure_channel(server.address) as channel, administrator(f"unix:{tmp_path}/admin.sock") as admin:
        caller = Caller(channel)
        under_way = caller.inference.Infer.future(caller.request(caller.upload().key_set_id, b"sleep:60"), timeout=90)
        wait_for(lambda: admin.stats().calls_under_way == 1)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: admin.stats().not_ready == ("draining",))
        assert not under_way.done()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == 0
        assert given_up(under_way)
    assert not (tmp_path / "admin.sock").exists()
