"""Workers as Ray Serve replicas give what local ones give, stop when told to, and lose no more than their own request."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from harness import KEYS, Caller, failure, make_config, make_models
from memories import holds, until

from protos.gen.secateur.v1 import keys_pb2
from server.config import EngineConfig
from server.errors import ConfigError
from server.running import RunningServer, start, start_subprocess
from server.scale.backends import problems, with_workers

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'secateur[ray]')"
)


def test_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(EngineConfig()) == []
    assert "need one of local, ray" in problems(EngineConfig(workers_backend="dask"))[0]
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else found(name))
    (problem,) = problems(EngineConfig(workers_backend="ray"))
    assert "secateur[ray]" in problem


def test_the_command_line_asks_for_numbers_or_for_ray() -> None:
    two = EngineConfig(workers=2)
    for text, workers, backend in (("3", 3, "local"), ("ray", 2, "ray"), ("ray:4", 4, "ray")):
        assert with_workers(two, text) == EngineConfig(workers=workers, workers_backend=backend)
    on_ray = with_workers(two, "ray")
    assert with_workers(on_ray, "8") == EngineConfig(workers=8, workers_backend="ray"), (
        "a number says nothing of the kind"
    )
    with pytest.raises(ConfigError, match="need a number, ray, or ray:N"):
        with_workers(two, "dask:4")


@pytest.mark.parametrize(("mode", "count"), [("token", 0), ("disabled", 1), ("", 1)])
def test_a_cluster_of_others_must_ask_for_a_token(monkeypatch: pytest.MonkeyPatch, mode: str, count: int) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    assert len(problems(EngineConfig(workers_backend="ray", ray_address="auto"))) == count
    assert problems(EngineConfig(workers_backend="ray")) == []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Caller]]:
    """In a process of its own, which Ray fills with threads, processes and warnings."""
    directory = tmp_path_factory.mktemp("ray")
    make_models(directory / "models")
    engine = {"workers": 2, "workers_backend": "ray", "backend": "fake", "runtime": "fake_runtime"}
    lines = ['address = "127.0.0.1:0"', 'models = "models"', 'state = "state"', "[engine]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in engine.items()]
    (directory / "server.toml").write_text("\n".join(lines))
    with (
        start_subprocess(directory / "server.toml", seconds=120.0) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        yield server, Caller(channel)


def is_below(pid: int, ancestor: int) -> bool:
    """Whether a process is a child of another one, or of one of its children."""
    try:
        while pid > 1 and pid != ancestor:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has just ended
        return False
    return pid == ancestor


def replicas(server: RunningServer) -> list[list[int]]:
    """Process ids of each replica of the server's cluster and of its worker; other runs of this test may have theirs."""
    assert server.process is not None
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes()
        except OSError:
            continue
        pid = int(path.parent.name)
        if title.startswith(b"ray::ServeReplica:secateur-") and is_below(pid, server.process.pid):
            tasks = Path(f"/proc/{pid}/task").glob("*/children")
            found.append([pid, *(int(child) for path in tasks for child in path.read_text().split())])
    return found


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_ray_workers(served: tuple[RunningServer, Caller], tmp_path: Path) -> None:
    """One test, as a cluster takes seconds to start."""
    server, caller = served
    keys = caller.upload(KEYS).key_set_id
    with start(make_config(tmp_path)) as local, grpc.insecure_channel(local.address) as channel:
        other = Caller(channel)
        others_keys = other.upload(KEYS).key_set_id
        for payload in (b"echo:a", b"echo:" + bytes(range(256)) * 2000):
            expected = other.infer(others_keys, payload).ciphertexts
            assert caller.infer(keys, payload, timeout=60).ciphertexts == expected

    # A typed error of the worker arrives as it is.
    assert failure(lambda: caller.infer(keys, b"level:", timeout=60)).reason == "LEVEL_MISMATCH"

    # Deleted keys leave the replicas' workers, which look for them every two seconds.
    content = b"KEYS" + os.urandom(1 << 20)
    gone = caller.upload(content).key_set_id
    caller.infer(gone, b"echo:d", timeout=60)
    workers = [pid for _, *children in replicas(server) for pid in children]
    assert any(holds(pid, content) for pid in workers)
    caller.keys.DeleteKeySet(keys_pb2.DeleteKeySetRequest(key_set_id=gone), timeout=20)
    until(lambda: not any(holds(pid, content) for pid in workers), seconds=15.0)

    # Two at a time.
    assert len(replicas(server)) == 2
    with ThreadPoolExecutor(2) as pool:
        began = time.monotonic()
        list(pool.map(lambda k: caller.infer(keys, b"sleep:1.0", timeout=60), range(2)))
        assert time.monotonic() - began < 1.9

    # A deadline frees its replica.
    for _ in range(2):
        assert failure(lambda: caller.infer(keys, b"sleep:60", timeout=0.5)).reason
    began = time.monotonic()
    assert caller.infer(keys, b"echo:b", timeout=60).ciphertexts
    assert time.monotonic() - began < 5

    # A worker that dies on a request costs that request.
    assert failure(lambda: caller.infer(keys, b"die:")).reason == "WORKER_LOST"
    assert caller.infer(keys, b"echo:c", timeout=60).ciphertexts

    # So does a replica.
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(caller.infer, keys, b"sleep:2.0", timeout=60) for _ in range(2)]
        time.sleep(1.0)
        os.kill(replicas(server)[0][0], signal.SIGKILL)
        lost = [call.exception() for call in calls]
    assert sum(error is not None for error in lost) == 1
    (error,) = [error for error in lost if error is not None]
    assert isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.UNAVAILABLE
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda k: caller.infer(keys, b"sleep:0.1", timeout=60).ciphertexts, range(6)))
    assert time.monotonic() - began < 15
