"""Batches by the blocking and by the asyncio client; what only the latter promises."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from both_clients import KINDS, Connect, clients, expected
from echo_server import EchoServer

import client as package
from client import (
    AsyncClient,
    BatchIncomplete,
    RangeWarning,
    ServerError,
    ServerUntrusted,
)
from he_runtime.errors import Reason
from protos.native import InferenceCall
from protos.status import Failure


@pytest.fixture(params=KINDS)
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connect]:
    with clients(request.param, tmp_path / "home") as one:
        yield one


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
