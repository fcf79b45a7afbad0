"""What is tried again and what is not: by policy, against a server that fails as told, and against real servers in trouble."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from echo_server import EchoServer

from client import Client, DeadlineExceeded, ServerBusy, ServerError, ServerUnreachable
from client import calls as calls_module
from client.retry import Budget, wait_before_retry
from he_runtime.errors import Reason
from protos.native import InferenceCall
from protos.status import CODES, Failure

INFER = calls_module.infer(InferenceCall("m", "1", "", "k", b"x", "id"))
AGAIN = {"SERVER_BUSY", "SERVER_DRAINING", "SERVER_UNREACHABLE", "STORE_UNAVAILABLE", "WORKER_LOST", "CANCELLED"}


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("reason", sorted(CODES))
def test_only_what_may_go_better_is_tried_again(reason: str) -> None:
    wait = wait_before_retry(INFER, Failure(reason, ""), 0, Budget(), time.monotonic() + 60)
    assert (wait is not None) == (reason in AGAIN)


def test_waits_are_drawn_from_all_of_a_growing_range_and_heed_retry_info() -> None:
    busy, until = Failure("SERVER_BUSY", "", retry_after_seconds=2.0), time.monotonic() + 1000
    for attempt, most in ((0, 0.2), (3, 1.6), (9, 10.0)):
        waits = [wait_before_retry(INFER, busy, attempt, Budget(retries=10), until) for _ in range(300)]
        drawn = [w - 2.0 for w in waits if w is not None]
        assert len(drawn) == 300 and min(drawn) >= 0 and max(drawn) <= most
        assert min(drawn) < most / 4 and max(drawn) > most * 3 / 4, "full jitter"


def test_a_quota_is_waited_for_and_a_size_is_not_retried() -> None:
    until = time.monotonic() + 60
    assert wait_before_retry(INFER, Failure("LIMIT_EXCEEDED", "", retry_after_seconds=1.0), 0, Budget(), until)
    assert wait_before_retry(INFER, Failure("LIMIT_EXCEEDED", ""), 0, Budget(), until) is None


def test_no_wait_outlasts_the_deadline_nor_the_number_of_retries() -> None:
    busy = Failure("SERVER_BUSY", "", retry_after_seconds=5.0)
    assert wait_before_retry(INFER, busy, 0, Budget(), time.monotonic() + 4) is None
    assert wait_before_retry(INFER, busy, 2, Budget(retries=2), time.monotonic() + 60) is None
    assert wait_before_retry(INFER, busy, 1, Budget(retries=2), time.monotonic() + 60) is not None


@pytest.mark.parametrize("reason", ["WORKER_LOST", "SERVER_BUSY", "SERVER_DRAINING"])
def test_retries_are_one_request(client: Client, server: Any, sample: np.ndarray, reason: str) -> None:
    server.failures = [Failure(reason, "soon", retry_after_seconds=0.01)] * 3
    assert client.predict("echo", sample).index == 5
    assert len(server.requests) == 4 and len({(r.request_id, r.ciphertexts) for r in server.requests}) == 1


def test_retries_are_counted_by_call_and_by_client(server: Any, sample: np.ndarray, tmp_path: Path) -> None:
    def tries(**options: int) -> int:
        server.requests.clear()
        server.failures = [Failure("SERVER_BUSY", "full", retry_after_seconds=0.01)] * 4
        with pytest.raises(ServerBusy):
            client.predict("echo", sample, **options)
        return len(server.requests)

    with Client.connect(server.address, home=tmp_path, retries=2) as client:
        assert [tries(), tries(retries=0), tries(retries=1)] == [3, 1, 2]


def test_errors_that_repeat_are_not_tried_again(client: Client, server: Any, sample: np.ndarray) -> None:
    for reason in ("INPUT_SHAPE", "LEVEL_MISMATCH", "INTERNAL", "PERMISSION_DENIED", "DIGEST_MISMATCH"):
        server.requests.clear()
        server.failures = [Failure(reason, "no")]
        with pytest.raises(ServerError) as caught:
            client.predict("echo", sample)
        assert (caught.value.reason, len(server.requests)) == (Reason(reason), 1)


# Real servers


def test_a_killed_worker_costs_one_more_attempt(echo_server: EchoServer, sample: np.ndarray, tmp_path: Path) -> None:
    echo_server.start()
    echo_server.set("die")
    with Client.connect(echo_server.address, home=tmp_path / "home", timeout=60) as client:
        assert client.predict("echo", sample).index == 5
    assert len(echo_server.evaluations()) == 1


def test_a_server_killed_between_evaluation_and_answer(
    echo_server: EchoServer, sample: np.ndarray, tmp_path: Path
) -> None:
    """The caller notices nothing but the time: the request is repeated under its id, and answered once."""
    echo_server.start_process()
    hold = echo_server.set("hold")
    with (
        Client.connect(echo_server.address, home=tmp_path / "home", timeout=90, retries=12) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(client.predict, "echo", sample)
        wait_for(lambda: len(echo_server.evaluations()) == 1 or answer.done())
        echo_server.kill()
        hold.unlink()
        assert not answer.done()
        echo_server.start_process()
        assert answer.result(90).index == 5
    assert len(set(echo_server.evaluations())) == 1 and len(echo_server.evaluations()) == 2


def test_a_drained_server_and_its_successor(echo_server: EchoServer, sample: np.ndarray, tmp_path: Path) -> None:
    echo_server.start()
    with (
        Client.connect(echo_server.address, home=tmp_path / "home", timeout=90, retries=12) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        hold = echo_server.set("hold")
        under_way = pool.submit(client.predict, "echo", np.stack([sample] * 3), in_flight=1)
        wait_for(lambda: len(echo_server.evaluations()) == 1 or under_way.done())
        stopping = threading.Thread(target=echo_server.stop)
        stopping.start()
        hold.unlink()
        stopping.join()
        echo_server.start()
        assert np.array_equal(under_way.result(90).index, [5, 5, 5])  # type: ignore[arg-type]
    assert len(echo_server.evaluations()) == 3, "what was let in is finished, and the rest done by the successor"


def test_a_server_that_is_always_busy(echo_server: EchoServer, sample: np.ndarray, tmp_path: Path) -> None:
    """A busy server is asked again until the caller's time is over, and no longer; once it has room, it answers."""
    echo_server.start(limits={"max_queue": 1})
    with Client.connect(echo_server.address, home=tmp_path / "home", timeout=60) as client:
        client.prepare("echo")
        hold = echo_server.set("hold")
        with ThreadPoolExecutor(2) as pool:
            others = [pool.submit(_another, echo_server.address, tmp_path / "home", sample)]
            wait_for(lambda: len(echo_server.evaluations()) == 1)
            others.append(pool.submit(_another, echo_server.address, tmp_path / "home", sample))
            wait_for(lambda: _full(client, sample), 40)  # one with the worker, one waiting
            started = time.monotonic()
            with pytest.raises(ServerBusy) as caught:
                client.predict("echo", sample, timeout=1.5)
            assert time.monotonic() - started < 4 and caught.value.retry_after is not None
            late = threading.Timer(0.3, hold.unlink)
            late.start()
            assert client.predict("echo", sample, retries=30).index == 5
            assert [other.result(60) for other in others] == [5, 5]


def _another(address: str, home: Path, sample: np.ndarray) -> object:
    with Client.connect(address, home=home, timeout=60, retries=100) as client:
        return client.predict("echo", sample).index


def _full(client: Client, sample: np.ndarray) -> bool:
    try:
        client.predict("echo", sample, timeout=0.2, retries=0)
    except ServerBusy:
        return True
    except DeadlineExceeded:
        time.sleep(0.5)  # let the other one in
        return False
    raise AssertionError("it was answered")


def test_a_deadline_is_a_timeout_error_and_stops_the_server(
    echo_server: EchoServer, sample: np.ndarray, tmp_path: Path
) -> None:
    echo_server.start()
    (echo_server.control / "gates").mkdir()
    with Client.connect(echo_server.address, home=tmp_path / "home") as client:
        client.prepare("echo")
        with pytest.raises(TimeoutError) as caught:
            client.predict("echo", sample, timeout=0.5)
        assert isinstance(caught.value, DeadlineExceeded)
        wait_for(lambda: not (echo_server.control / "under-way").exists())
        (echo_server.control / "gates").rename(echo_server.control / "no-gates")
        assert client.predict("echo", sample, timeout=30).index == 5, "the worker is free again"
    assert len(echo_server.evaluations()) == 1


@pytest.fixture
def interruptible() -> Iterator[None]:
    """As in a terminal: shells start what runs in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_cancels_at_the_server(client: Client, server: Any, sample: np.ndarray) -> None:
    """Ctrl-C in the middle of a batch: every request under way ends at the server, and none is begun after it."""
    client.prepare("echo")
    began, ended = threading.Semaphore(0), threading.Semaphore(0)

    def answer(spec: Any, call: InferenceCall) -> bytes:
        began.release()
        ended.acquire(timeout=90)
        return b""

    server.answer = answer
    main = threading.main_thread()

    def interrupt() -> None:
        for _ in range(2):
            began.acquire(timeout=90)
        assert main.ident is not None
        signal.pthread_kill(main.ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        client.predict("echo", np.stack([sample] * 6), in_flight=2)
    thread.join()
    assert server.calls.count("Infer") == 2
    for _ in range(2):
        ended.release()


def test_a_server_that_never_comes_back_is_given_up(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ServerUnreachable):
        Client.connect("127.0.0.1:1", home=tmp_path, timeout=2.0)
    assert time.monotonic() - started < 3
    with pytest.raises(ServerUnreachable) as caught:
        Client.connect("127.0.0.1:1", home=tmp_path, retries=0)
    assert caught.value.code == grpc.StatusCode.UNAVAILABLE.name
