"""What breaks while requests run: killed workers and servers, signals, deadlines, cancellations, mutated requests."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from client import Client
from tests.integration.stack import MODELS, RawClient, Stack
from tests.server.harness import failure
from tests.wire.arrays import resealed

QUICK, SLOW = MODELS


@pytest.fixture(scope="module")
def slow(stack: Stack) -> Any:
    """A raw client of the model that takes longer: some 150 ms on SEAL, a tenth of that on the native back end."""
    with stack.channel() as channel:
        yield RawClient.make(channel, SLOW)


def _start(slow: RawClient, timeout: float = 60.0) -> Any:
    request = slow.caller.request(slow.key_set_id, slow.request_bytes, model=SLOW)
    return slow.caller.inference.Infer.future(request, timeout=timeout)


def _eventually(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_worker_killed_in_the_middle_costs_the_client_nothing_but_time(stack: Stack, client: Client) -> None:
    """Stopped first, so that it certainly dies with the request under way; the client tries again by itself."""
    stack.check(client, SLOW)
    for _ in range(2):
        (worker,) = stack.workers()
        os.kill(worker, signal.SIGSTOP)
        killer = threading.Timer(0.3, os.kill, (worker, signal.SIGKILL))
        killer.start()
        stack.check(client, SLOW)
        killer.join()
        assert _is_gone(worker) and worker not in stack.workers()


def test_a_killed_worker_is_said_to_be_lost(stack: Stack, slow: RawClient) -> None:
    (worker,) = stack.workers()
    os.kill(worker, signal.SIGSTOP)  # so that it certainly dies with the request under way
    call = _start(slow)
    time.sleep(0.3)
    os.kill(worker, signal.SIGKILL)
    lost = failure(call.result)
    assert slow.infer().ciphertexts
    assert (lost.reason, lost.code) == ("WORKER_LOST", grpc.StatusCode.UNAVAILABLE)
    assert lost.retry_after_seconds is not None


def test_deadlines_free_the_worker(stack: Stack, slow: RawClient) -> None:
    workers = stack.workers()
    errors = [_start(slow, seconds).exception() for seconds in (0.001, 0.002, 0.003, 0.005, 0.01, 0.02)]
    late = [error for error in errors if error is not None]  # a fast machine may keep the later ones
    assert late and {error.code() for error in late} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    started = time.monotonic()
    assert slow.infer().ciphertexts
    assert time.monotonic() - started < 5.0 and stack.workers() == workers


def test_a_storm_of_cancellations_leaves_nothing_behind(stack: Stack, slow: RawClient) -> None:
    workers, delays = stack.workers(), np.random.default_rng(1).uniform(0, 0.02, 60)
    for delay in delays:
        call = _start(slow)
        time.sleep(delay)
        call.cancel()
    started = time.monotonic()
    reply = slow.infer()
    assert time.monotonic() - started < 5.0, "what was cancelled is not evaluated first"
    assert reply.ciphertexts and stack.workers() == workers


def test_sigterm_lets_what_is_under_way_finish(own: Any) -> None:
    with own() as served, served.channel() as channel:
        slow = RawClient.make(channel, SLOW)
        process, workers = served.running.process, served.workers()
        call = _start(slow)
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert np.abs(slow.decrypt(call.result().ciphertexts)).max() < 1e3
        assert process.wait(20) == 0
        assert all(_is_gone(pid) for pid in workers)
        assert failure(slow.infer).reason == "SERVER_UNREACHABLE"


def test_a_killed_server_takes_its_workers_along_and_comes_back(own: Any, tmp_path: Path) -> None:
    with own() as served, served.connect(tmp_path / "home") as client:
        served.check(client, SLOW)
        with served.channel() as channel:
            slow, workers = RawClient.make(channel, SLOW), served.workers()
            for pid in workers:
                os.kill(pid, signal.SIGSTOP)  # so that the request is certainly under way
            call = _start(slow)
            time.sleep(0.3)
            served.running.process.kill()
            assert failure(call.result).reason == "SERVER_UNREACHABLE"
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        assert _eventually(lambda: all(_is_gone(pid) for pid in workers)), "no worker is left over"
        served.restart()
        assert client.predict(SLOW, np.zeros(64)).uploaded_bytes == 0, "the keys are still there"


@pytest.mark.usefixtures("still_serving")
def test_mutated_requests_are_answered_or_refused(raw: RawClient) -> None:
    """Words of the heads set to awkward values, under digests that are right: a reply or a typed refusal, never a crash."""
    rng, awkward = np.random.default_rng(7), [0, 1, 2**31, 2**32 - 1, 2**53, 2**63, 2**64 - 1]
    found = set()
    for _ in range(60):
        at, value, width = int(rng.integers(80, 140)), int(rng.choice(np.array(awkward, dtype=object))), 8
        data = resealed(
            raw.request_bytes,
            lambda b, a=at, v=value, w=width: b.__setitem__(slice(a, a + w), v.to_bytes(w, "little")),
        )
        try:
            raw.infer(data)
        except grpc.RpcError:
            refusal = failure(lambda d=data: raw.infer(d))
            assert refusal.reason not in ("INTERNAL", "WORKER_LOST", "DEADLINE_EXCEEDED"), refusal
            found.add(refusal.reason)
    assert {"LEVEL_MISMATCH", "SCALE_MISMATCH", "SIZE_MISMATCH", "RESIDUE_OUT_OF_RANGE"} <= found
