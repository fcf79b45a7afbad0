"""Jobs over the network: begun, watched, cancelled, collected, and what is left of them after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from harness import KEYS, Caller, failure, make_config, sha256

from protos import convert
from protos.gen.secateur.v1 import inference_pb2
from protos.native import JobState, JobStatus
from server.running import RunningServer, start


@pytest.fixture(scope="module")
def key_set(shared: tuple[RunningServer, Caller]) -> str:
    return shared[1].upload().key_set_id


class Jobs:
    """Job calls of one caller."""

    def __init__(self, caller: Caller, key_set: str) -> None:
        self.caller = caller
        self.key_set = key_set

    def submit(self, payload: bytes, **changes: Any) -> str:
        call = self.caller.request(self.key_set, payload, **changes)
        request = inference_pb2.SubmitJobRequest(call=call)
        return str(self.caller.inference.SubmitJob(request, timeout=20).job_id)

    def watch(self, job_id: str) -> Iterator[JobStatus]:
        for message in self.caller.inference.WatchJob(inference_pb2.WatchJobRequest(job_id=job_id), timeout=30):
            yield convert.job_status_from_proto(message.status)

    def end(self, job_id: str) -> JobStatus:
        return list(self.watch(job_id))[-1]

    def cancel(self, job_id: str) -> JobStatus:
        reply = self.caller.inference.CancelJob(inference_pb2.CancelJobRequest(job_id=job_id), timeout=20)
        return convert.job_status_from_proto(reply.status)

    def result(self, job_id: str) -> inference_pb2.InferResponse:
        reply: inference_pb2.GetResultResponse = self.caller.inference.GetResult(
            inference_pb2.GetResultRequest(job_id=job_id), timeout=20
        )
        return reply.reply


@pytest.fixture
def jobs(caller: Caller, key_set: str) -> Jobs:
    return Jobs(caller, key_set)


def test_a_job_is_watched_layer_by_layer_and_collected(jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.submit(b"steps:%s" % bytes(tmp_path))
    assert len(job_id) == 32 and failure(lambda: jobs.result(job_id)).reason == "JOB_UNFINISHED"
    seen: list[JobStatus] = []
    for status in jobs.watch(job_id):
        if status.operations_planned and (not seen or status.operations_done != seen[-1].operations_done):
            seen.append(status)
            (tmp_path / str(status.operations_done)).touch()
    assert status.state is JobState.SUCCEEDED
    at = [(s.layer, s.layers, s.layer_name, s.operations_done, s.operations_planned) for s in seen]
    assert at == [(1, 2, "dense1", 0, 3), (1, 2, "dense1", 1, 3), (2, 2, "square1", 2, 3)]
    assert all(s.state is JobState.RUNNING and s.seconds_left is not None and s.seconds_left >= 0 for s in seen)
    reply = jobs.result(job_id)
    assert (reply.ciphertexts, reply.model, reply.version) == (b"stepped", "digits", "10")
    assert reply.timings.evaluate_ms > 0 and jobs.result(job_id) == reply, "and collected again"
    assert [s.state for s in jobs.watch(job_id)] == [JobState.SUCCEEDED]


def test_a_cancelled_job_frees_its_worker(jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.submit(b"steps:%s" % bytes(tmp_path), request_id="to cancel")
    next(s for s in jobs.watch(job_id) if s.operations_planned)
    assert jobs.cancel(job_id).state is JobState.CANCELLED
    assert failure(lambda: jobs.result(job_id)).reason == "CANCELLED"
    assert jobs.cancel(job_id).state is JobState.CANCELLED, "of no effect twice"
    after = jobs.submit(b"echo:free")
    assert jobs.end(after).state is JobState.SUCCEEDED and jobs.cancel(after).state is JobState.SUCCEEDED
    again = jobs.submit(b"steps:%s" % bytes(tmp_path), request_id="to cancel")
    assert again != job_id and jobs.cancel(again).state is JobState.CANCELLED, "a cancelled one is begun anew"


def test_an_equal_request_id_is_the_same_job(jobs: Jobs, tmp_path: Path) -> None:
    payload = b"steps:%s" % bytes(tmp_path)
    first, second = (jobs.submit(payload, request_id="long") for _ in range(2))
    other = jobs.submit(b"echo:other", request_id="long")
    assert len({first, second, other}) == 3, "each caller gets an id of its own"
    for i in range(3):
        (tmp_path / str(i)).touch()
    assert jobs.end(second).state is JobState.SUCCEEDED
    assert jobs.result(first) == jobs.result(second) and jobs.result(first).ciphertexts == b"stepped"
    assert jobs.end(other).state is JobState.SUCCEEDED
    assert jobs.result(jobs.submit(payload, request_id="long")).timings == jobs.result(first).timings


def test_a_failed_job_says_why(jobs: Jobs) -> None:
    job_id = jobs.submit(b"level:", request_id="bad level")
    end = jobs.end(job_id)
    assert (end.state, end.reason) == (JobState.FAILED, "LEVEL_MISMATCH") and "level 2" in end.message
    assert failure(lambda: jobs.result(job_id)).reason == "LEVEL_MISMATCH"
    broken = jobs.submit(b"library:")
    assert jobs.end(broken).reason == "INTERNAL" and "pool" not in jobs.end(broken).message


def test_what_is_wrong_with_a_request_is_said_at_once(jobs: Jobs) -> None:
    assert failure(lambda: jobs.submit(b"")).reason == "BYTES_TRUNCATED"
    assert failure(lambda: jobs.submit(b"echo:x", model="nope")).reason == "MODEL_UNKNOWN"
    assert failure(lambda: Jobs(jobs.caller, "0" * 32).submit(b"echo:x")).reason == "KEY_SET_UNKNOWN"


@pytest.mark.parametrize("job_id", ["", "0" * 32, "x"])
def test_an_unknown_job(jobs: Jobs, job_id: str) -> None:
    for ask in (lambda: jobs.end(job_id), lambda: jobs.cancel(job_id), lambda: jobs.result(job_id)):
        refused = failure(ask)
        assert (refused.reason, refused.code) == ("JOB_UNKNOWN", grpc.StatusCode.NOT_FOUND)


def test_a_worker_lost_under_a_job(jobs: Jobs) -> None:
    job_id = jobs.submit(b"die:", request_id="dies")
    assert jobs.end(job_id).reason == "WORKER_LOST"
    assert failure(lambda: jobs.result(job_id)).reason == "WORKER_LOST"


def test_what_a_restart_leaves(tmp_path: Path) -> None:
    """Finished jobs are as they were; one that ran is lost, and begun again by its request_id."""
    config = replace(make_config(tmp_path), drain_seconds=0.1)
    gates = tmp_path / "gates"
    gates.mkdir()
    long = b"steps:%s" % bytes(gates)
    with start(config) as server, grpc.insecure_channel(server.address) as channel:
        before = Jobs(Caller(channel), Caller(channel).upload().key_set_id)
        done = before.submit(b"echo:kept")
        assert before.end(done).state is JobState.SUCCEEDED
        running = before.submit(long, request_id="long")
        next(s for s in before.watch(running) if s.operations_planned)
        content = b"".join(p.read_bytes() for p in (tmp_path / "state" / "jobs" / "records").iterdir())
        assert done.encode() not in content and sha256(done.encode()).encode() in content, "ids are stored as hashes"
    with start(config) as server, grpc.insecure_channel(server.address) as channel:
        after = Jobs(Caller(channel), before.key_set)
        assert after.result(done).ciphertexts == sha256(KEYS).encode() + b"|kept"
        lost = after.end(running)
        assert (lost.state, lost.reason) == (JobState.FAILED, "WORKER_LOST")
        for i in range(3):
            (gates / str(i)).touch()
        again = after.submit(long, request_id="long")
        assert after.end(again).state is JobState.SUCCEEDED and after.result(again).ciphertexts == b"stepped"
