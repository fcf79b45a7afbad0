"""Jobs and keys at real servers, by the blocking and by the asyncio client."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from both_clients import KINDS, Blocking, Connect, clients, expected
from echo_server import EchoServer

from client import (
    DeadlineExceeded,
    KeyStoreError,
    ServerError,
)
from he_runtime.errors import InputError, Reason
from protos.native import JobState, JobStatus


@pytest.fixture(params=KINDS)
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connect]:
    with clients(request.param, tmp_path / "home") as one:
        yield one


def test_a_job_is_watched_by_layer_and_collected_after_a_restart_of_the_program(
    connect: Connect, echo_server: EchoServer, sample: np.ndarray, tmp_path: Path
) -> None:
    echo_server.start()
    (echo_server.control / "gates").mkdir()
    first = connect(echo_server.address)
    job = first.submit("echo", sample)
    seen: list[JobStatus] = []
    for status in job.watch():
        if status.operations_planned and status.state is JobState.RUNNING:
            seen.append(status)
            echo_server.open_gate(status.operations_done)
    assert status.state is JobState.SUCCEEDED
    at = {(s.layer, s.layers, s.layer_name, s.operations_done) for s in seen}
    assert at == {(1, 2, "dense1", 0), (1, 2, "dense1", 1), (2, 2, "square1", 2)}
    assert all(s.seconds_left is not None for s in seen)
    first.close()

    (stored,) = (tmp_path / "home").glob("servers/*/*/jobs/*.json")
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600 and stat.S_IMODE(stored.parent.stat().st_mode) == 0o700
    assert job.id not in repr(job) and job.id not in stored.name and job.name == stored.stem
    later = connect(echo_server.address)
    for known in (later.job(job.id), later.job(job.name), later.jobs()[0]):
        answer = (Blocking(known, later._loop) if isinstance(later, Blocking) else known).result(timeout=20)
        np.testing.assert_allclose(answer.logits, expected(sample)[0], atol=1e-3)
        assert (answer.index, answer.label) == (5, "f")
    assert len(echo_server.evaluations()) == 1


def test_a_result_that_is_not_there_in_time_can_be_had_later(
    connect: Connect, echo_server: EchoServer, sample: np.ndarray
) -> None:
    echo_server.start()
    hold = echo_server.set("hold")
    job = connect(echo_server.address).submit("echo", sample[None])
    with pytest.raises(DeadlineExceeded):
        job.result(timeout=0.5)
    assert not job.status().state.is_final
    hold.unlink()
    assert job.result(timeout=30).logits.shape == (1, 8), "a batch of one stays a batch"


def test_a_cancelled_job_and_an_unknown_one(connect: Connect, echo_server: EchoServer, sample: np.ndarray) -> None:
    echo_server.start()
    (echo_server.control / "gates").mkdir()
    client = connect(echo_server.address)
    job = client.submit("echo", sample)
    assert job.cancel().state is JobState.CANCELLED
    with pytest.raises(ServerError) as caught:
        job.result(timeout=20)
    assert caught.value.reason is Reason.CANCELLED
    with pytest.raises(KeyStoreError, match="cannot find the job"):
        client.job("0123456789abcdef")
    with pytest.raises(KeyStoreError):
        client.job("../../../../etc/passwd")


def test_a_watch_goes_on_through_a_restart_of_the_server(
    connect: Connect, echo_server: EchoServer, sample: np.ndarray
) -> None:
    echo_server.drain_seconds = 0.3
    echo_server.start()
    client = connect(echo_server.address, retries=12)
    job = client.submit("echo", sample)
    assert job.result(timeout=30).index == 5
    (echo_server.control / "gates").mkdir()
    lost = client.submit("echo", sample)
    watched = lost.watch(timeout=60)
    first, name = next(watched), lost.name
    assert not first.state.is_final
    echo_server.stop()
    echo_server.start()
    later = next(watched)
    while later.state is not JobState.RUNNING:
        later = next(watched)
    for gate in range(3):
        echo_server.open_gate(gate)
    assert list(watched)[-1].state is JobState.SUCCEEDED, "an unfinished job is submitted again"
    assert len(echo_server.evaluations()) == 2 and lost.result(timeout=30).index == 5
    assert (lost.name, client.job(name).id, client.job(lost.id).name) == (name, lost.id, name)
    assert job.result(timeout=30).index == 5, "a finished one is kept"


def test_a_server_that_has_lost_everything_gets_keys_and_job_again(
    connect: Connect, echo_server: EchoServer, sample: np.ndarray
) -> None:
    echo_server.drain_seconds = 0.3
    echo_server.start()
    gates = echo_server.control / "gates"
    gates.mkdir()
    client = connect(echo_server.address, retries=12)
    job, other = client.submit("echo", sample), client.submit("echo", sample)
    echo_server.stop()
    shutil.rmtree(echo_server.root / "state")
    echo_server.start()
    with pytest.raises(ServerError) as caught:
        client.job(other.name).result(timeout=20)
    assert caught.value.reason is Reason.JOB_UNKNOWN, "the input was the program's, and is not stored"
    for gate in range(3):
        echo_server.open_gate(gate)
    assert job.result(timeout=30).index == 5
    (keys,) = client.keys()
    assert keys.at_server
    assert len(echo_server.evaluations()) == 1


@pytest.mark.parametrize(("retries", "submissions"), [(5, 4), (1, 2), (0, 1)])
def test_a_job_that_is_lost_every_time_is_submitted_a_few_times_only(
    connect: Connect, echo_server: EchoServer, sample: np.ndarray, retries: int, submissions: int
) -> None:
    echo_server.start()
    client = connect(echo_server.address, retries=retries)
    client.prepare("echo")
    doom = echo_server.set("doomed")
    job = client.submit("echo", sample)
    last = list(job.watch(timeout=60))[-1]
    assert (last.state, last.reason) == (JobState.FAILED, "WORKER_LOST")
    assert job._known.resubmissions == submissions - 1
    doom.unlink()
    assert job.status().state is JobState.FAILED, "and not once more"
    assert not echo_server.evaluations()


def test_a_cancelled_job_is_not_submitted_again(connect: Connect, echo_server: EchoServer, sample: np.ndarray) -> None:
    echo_server.drain_seconds = 0.3
    echo_server.start()
    (echo_server.control / "gates").mkdir()
    client = connect(echo_server.address, retries=12)
    job = client.submit("echo", sample)
    job.cancel()
    echo_server.stop()
    shutil.rmtree(echo_server.root / "state" / "jobs")
    echo_server.start()
    with pytest.raises(ServerError) as caught:
        job.result(timeout=20)
    assert caught.value.reason is Reason.JOB_UNKNOWN


def test_a_job_holds_what_a_ciphertext_holds(connect: Connect, server: Any, sample: np.ndarray) -> None:
    with pytest.raises(InputError, match="got 9 samples, need at most 1"):
        connect(server.address).submit("echo", np.stack([sample] * 9))
    assert "CreateUpload" not in server.calls


# Keys


def test_keys_are_listed_and_deleted_here_and_there(
    connect: Connect, echo_server: EchoServer, sample: np.ndarray, tmp_path: Path
) -> None:
    """At a server without identities, which can be asked only for what is known here."""
    echo_server.start()
    client = connect(echo_server.address)
    assert client.keys() == []
    client.predict("echo", sample)
    (keys,) = client.keys()
    assert keys.here and keys.at_server and keys.total_bytes > 10_000 and keys.expires > keys.created > 1e9
    assert [k.handle for k in client.delete_keys(keys.handle[:12])] == [keys.handle]
    (left,) = client.keys()
    assert (left.here, left.at_server, left.handle) == (True, False, ""), "the secret stays"
    client.predict("echo", sample)
    (again,) = client.keys()
    assert again.handle != keys.handle and again.created == keys.created
    assert client.delete_keys(again.params_digest) == [again]
    assert client.keys() == [] and not list((tmp_path / "home").rglob("secret.key"))
    for wrong in ("", "12345678", again.handle):
        with pytest.raises(KeyStoreError, match="cannot delete keys"):
            client.delete_keys(wrong)
    assert client.predict("echo", sample).index == 5, "with new keys"
