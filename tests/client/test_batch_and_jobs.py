"""Batches, jobs and keys, by the blocking and by the asyncio client: the same tests for both."""

from __future__ import annotations

import asyncio
import inspect
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echo_server import EchoServer

import client as package
from client import (
    AsyncClient,
    BatchIncomplete,
    Client,
    DeadlineExceeded,
    KeyStoreError,
    RangeWarning,
    ServerError,
    ServerUntrusted,
)
from he_runtime.errors import InputError, Reason
from protos.native import InferenceCall, JobState, JobStatus
from protos.status import Failure


class Blocking:
    """An AsyncClient, or a job of one, whose every method is waited for: tests then read alike for both clients."""

    def __init__(self, inner: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            result = found(*args, **options)
            if inspect.isasyncgen(result):
                return self._each(result)
            if inspect.iscoroutine(result):
                result = self._loop.run_until_complete(result)
            return Blocking(result, self._loop) if hasattr(result, "watch") else result

        return call

    def _each(self, found: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._loop.run_until_complete(anext(found))
                except StopAsyncIteration:
                    return
        finally:
            self._loop.run_until_complete(found.aclose())


Connect = Callable[..., Any]


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connect]:
    """Clients of one kind and one key store."""
    with asyncio.Runner() as runner:
        made: list[Any] = []

        def one(address: str, **options: Any) -> Any:
            options = {"home": tmp_path / "home", "timeout": 60.0, **options}
            if request.param == "blocking":
                made.append(Client.connect(address, **options))
            else:
                loop = runner.get_loop()
                made.append(Blocking(loop.run_until_complete(AsyncClient.connect(address, **options)), loop))
            return made[-1]

        yield one
        for client in made:
            client.close()


def expected(samples: np.ndarray) -> np.ndarray:
    return (samples.reshape(-1, 8) - 0.5) / 0.25


@pytest.fixture
def batch(sample: np.ndarray) -> np.ndarray:
    return np.stack([np.roll(sample, k) for k in range(9)])


def test_a_batch_is_split_kept_in_order_and_reported(connect: Connect, server: Any, batch: np.ndarray) -> None:
    client, seen = connect(server.address), []
    answer = client.predict("echo", batch, items=lambda done, total: seen.append((done, total)))
    np.testing.assert_allclose(answer.logits, expected(batch), atol=1e-3)
    assert seen == [(k, 9) for k in range(1, 10)]
    assert len({r.request_id for r in server.requests}) == 9


@pytest.mark.parametrize("most", [1, 3])
def test_so_many_requests_are_in_flight_and_no_more(
    connect: Connect, server: Any, batch: np.ndarray, most: int
) -> None:
    import threading

    lock, now, peak = threading.Lock(), [0], [0]
    meet = threading.Barrier(most)
    echo = server.answer

    def answer(spec: Any, call: InferenceCall) -> bytes:
        with lock:
            now[0] += 1
            peak[0] = max(peak[0], now[0])
        meet.wait(20)  # nobody goes on before all that may be there are there
        with lock:
            now[0] -= 1
        return bytes(echo(spec, call))

    server.answer = answer
    connect(server.address).predict("echo", batch, in_flight=most)
    assert peak == [most]


def test_a_partial_failure_says_what_is_missing_and_holds_the_rest(
    connect: Connect, server: Any, batch: np.ndarray
) -> None:
    client = connect(server.address)
    client.predict("echo", batch[0])
    server.requests.clear()
    echo = server.answer

    def answer(spec: Any, call: InferenceCall) -> bytes:
        if len(server.requests) == 6:
            server.failures = [Failure("INTERNAL", "broken")] * 9
        return bytes(echo(spec, call))

    server.answer = answer
    with pytest.raises(BatchIncomplete, match="3 of 9 items failed \\(6, 7, 8\\)") as caught:
        client.predict("echo", batch, in_flight=1)
    error = caught.value
    assert (error.done, error.missing, error.reason) == (tuple(range(6)), (6, 7, 8), Reason.INTERNAL)
    np.testing.assert_allclose(error.prediction.logits, expected(batch[:6]), atol=1e-3)
    assert isinstance(error.__cause__, ServerError)
    assert len(server.requests) == 7, "nothing is begun after a failure"


def test_keys_evicted_within_a_batch_cost_only_what_had_no_answer(
    connect: Connect, server: Any, batch: np.ndarray
) -> None:
    client, echo = connect(server.address), server.answer

    def answer(spec: Any, call: InferenceCall) -> bytes:
        data = bytes(echo(spec, call))
        if len(server.requests) == 4:
            server.evict()
        return data

    server.answer = answer
    answered = client.predict("echo", batch, in_flight=1)
    np.testing.assert_allclose(answered.logits, expected(batch), atol=1e-3)
    assert len(server.requests) == 10 and server.calls.count("CommitUpload") == 2


def test_a_bad_reply_ends_the_batch(connect: Connect, server: Any, batch: np.ndarray) -> None:
    server.bend_reply = lambda reply: type(reply)(**{**vars(reply), "version": "2"})
    with pytest.raises(ServerUntrusted):
        connect(server.address).predict("echo", batch)


def test_a_warning_names_the_caller(connect: Connect, server: Any, sample: np.ndarray) -> None:
    sample[0, 0] = 1.5
    with pytest.warns(RangeWarning) as caught:
        connect(server.address).predict("echo", sample)
    assert Path(package.__file__ or "").parent not in Path(caught[0].filename).parents


# Jobs, at a real server


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
    assert not next(watched).state.is_final
    echo_server.stop()
    echo_server.start()
    last = list(watched)[-1]
    assert (last.state, last.reason) == (JobState.FAILED, "WORKER_LOST"), "a restart loses unfinished jobs, and says so"
    assert job.result(timeout=30).index == 5, "and keeps results"


def test_a_job_holds_what_a_ciphertext_holds(connect: Connect, server: Any, batch: np.ndarray) -> None:
    with pytest.raises(InputError, match="got 9 samples, need at most 1"):
        connect(server.address).submit("echo", batch)
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


# The asyncio client only


async def test_the_event_loop_is_never_blocked(server: Any, batch: np.ndarray, tmp_path: Path) -> None:
    """Making keys, uploading, encrypting and decrypting: the loop keeps turning meanwhile."""
    gaps: list[float] = []

    async def heart() -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(0.005)
            gaps.append(loop.time() - last)
            last = loop.time()

    async with await AsyncClient.connect(server.address, home=tmp_path / "home") as client:
        beating = asyncio.create_task(heart())
        answers = await asyncio.gather(*(client.predict("echo", batch) for _ in range(3)))
        beating.cancel()
    assert all(np.allclose(a.logits, expected(batch), atol=1e-3) for a in answers)
    assert server.calls.count("CommitUpload") == 1, "calls at the same time share the keys"
    assert len(gaps) > 10 and float(np.median(gaps)) < 0.1


async def test_cancelling_a_task_cancels_at_the_server(
    echo_server: EchoServer, sample: np.ndarray, tmp_path: Path
) -> None:
    await asyncio.to_thread(echo_server.start)
    (echo_server.control / "gates").mkdir()
    async with await AsyncClient.connect(echo_server.address, home=tmp_path / "home") as client:
        task = asyncio.create_task(client.predict("echo", np.stack([sample] * 3)))
        async with asyncio.timeout(30):
            while not (echo_server.control / "under-way").exists():
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while (echo_server.control / "under-way").exists():
                await asyncio.sleep(0.01)
    assert echo_server.evaluations() == []
    await asyncio.to_thread(echo_server.stop)
