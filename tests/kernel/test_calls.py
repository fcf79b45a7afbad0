"""Calls as such: stopped, several at once, in a forked child, and without the interpreter's lock."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tenseal")

from tests.kernel.evaluation import U64
from tests.kernel.long_call import long_call

# The processors may be shared with others, so times are those that the calling thread computes, and the best of several
# attempts counts.
ATTEMPTS = 4


@pytest.fixture(autouse=True)
def threads(kernel: Any) -> Iterator[None]:
    before = kernel.threads()
    yield
    kernel.set_threads(before)


class Enough(Exception):
    pass


def best(measure: Callable[[], float], good: float) -> float:
    """The least of a few measurements, as soon as one is good."""
    found = float("inf")
    for _ in range(ATTEMPTS):
        found = min(found, measure())
        if found < good:
            break
    return found


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_a_poll_that_raises_stops_the_call(kernel: Any, count: int, compact: bool) -> None:
    kernel.set_threads(count)
    call = long_call(kernel, compact)
    wanted = call.run_short()
    raised: list[float] = []

    def poll() -> None:
        if time.thread_time() > begin + 0.03:
            raised.append(time.thread_time())
            raise Enough("by poll")

    delays = []
    for _ in range(ATTEMPTS):
        begin = time.thread_time()
        with pytest.raises(Enough, match="by poll"):
            call.run(kernel.Task(poll))
        delays.append(time.thread_time() - raised[-1])
        np.testing.assert_array_equal(call.run_short(), wanted, err_msg="after a stopped call")
    assert len(raised) == ATTEMPTS, "it is not called again"
    assert min(delays) < 0.05


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_polls_are_never_far_apart(kernel: Any, count: int, compact: bool) -> None:
    kernel.set_threads(count)
    call = long_call(kernel, compact)

    def longest_gap() -> float:
        times = [time.thread_time()]
        call.transform.run(call.inputs, call.keys, kernel.Task(lambda: times.append(time.thread_time())))
        assert len(times) > 3, "the call is long enough to tell"
        return float(max(np.diff([*times, time.thread_time()])))

    assert best(longest_gap, 0.05) < 0.05


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_another_thread_can_cancel(kernel: Any, count: int, compact: bool) -> None:
    kernel.set_threads(count)
    call = long_call(kernel, compact)
    wanted = call.run_short()

    def delay() -> float:
        task = kernel.Task()
        told: list[float] = []
        clock = time.pthread_getcpuclockid(threading.get_ident())

        def cancel() -> None:
            told.append(time.clock_gettime(clock))
            task.cancel()

        timer = threading.Timer(0.04, cancel)
        timer.start()
        with pytest.raises(RuntimeError, match="cancelled"):
            call.run(task)
        after = time.clock_gettime(clock) - told[0]
        with pytest.raises(RuntimeError, match="cancelled"):  # a task that was cancelled stays so
            call.short.run(call.inputs, call.keys, task)
        return after

    assert best(delay, 0.05) < 0.05
    np.testing.assert_array_equal(call.run_short(), wanted)


def test_progress_grows(kernel: Any) -> None:
    kernel.set_threads(2)
    call = long_call(kernel)
    task, seen, done = kernel.Task(), [], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(task.progress)

    assert task.progress == 0
    watcher = threading.Thread(target=watch)
    watcher.start()
    call.run(task)
    done.set()
    watcher.join()
    assert seen == sorted(seen) and len(set(seen)) > 3
    assert task.progress >= seen[-1] > 0


def at_once(count: int, work: Callable[[], list[U64]]) -> list[list[U64]]:
    results: list[list[U64]] = []
    callers = [threading.Thread(target=lambda: results.append(work())) for _ in range(count)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return results


def test_calls_at_once_share_the_threads(kernel: Any) -> None:
    """The process never takes more processor time than its threads have; every result is right."""
    call = long_call(kernel)
    kernel.set_threads(1)
    wanted = call.run(kernel.Task())

    def share() -> float:
        cpu, wall = time.process_time(), time.monotonic()
        results = at_once(3, lambda: call.run(kernel.Task()))
        used = (time.process_time() - cpu) / (time.monotonic() - wall)
        assert len(results) == 3
        for result in results:
            np.testing.assert_array_equal(result, wanted)
        return used

    assert best(share, 1.1) < 1.1
    kernel.set_threads(2)
    for result in at_once(3, lambda: call.run(kernel.Task())):
        np.testing.assert_array_equal(result, wanted)


def test_a_short_call_gets_a_turn_while_a_long_one_has_helpers(kernel: Any) -> None:
    kernel.set_threads(2)
    call = long_call(kernel, compact=False)
    ended: list[float] = []
    wanted = call.run_short()

    def run() -> None:
        call.run(kernel.Task())
        ended.append(time.monotonic())

    long = threading.Thread(target=run)
    long.start()
    time.sleep(0.03)
    for _ in range(3):
        np.testing.assert_array_equal(call.run_short(), wanted)
    short_ended = time.monotonic()
    long.join()
    assert short_ended < ended[0]


def test_a_call_that_waits_for_its_turn_is_polled(kernel: Any) -> None:
    kernel.set_threads(1)
    call, ended = long_call(kernel), threading.Event()

    def run() -> None:
        call.run(kernel.Task())
        ended.set()

    long = threading.Thread(target=run)
    long.start()
    time.sleep(0.03)

    def poll() -> None:
        raise Enough("while waiting")

    with pytest.raises(Enough, match="while waiting"):
        call.short.run(call.inputs, call.keys, kernel.Task(poll))
    assert not ended.is_set()
    long.join()


def test_a_poll_may_evaluate(kernel: Any) -> None:
    kernel.set_threads(1)
    call = long_call(kernel)
    wanted = call.run_short()
    found: list[list[U64]] = []

    def poll() -> None:
        if not found:
            found.append(call.run_short())

    call.run(kernel.Task(poll))
    np.testing.assert_array_equal(found[0], wanted)


def test_other_python_threads_run_meanwhile(kernel: Any) -> None:
    kernel.set_threads(1)
    call = long_call(kernel)
    ticks, done = [0], threading.Event()

    def tick() -> None:
        while not done.is_set():
            ticks[0] += 1
            time.sleep(0.001)

    other = threading.Thread(target=tick)
    other.start()
    before, begin = ticks[0], time.monotonic()
    call.transform.run(call.inputs, call.keys, kernel.Task())
    during, spent = ticks[0] - before, time.monotonic() - begin
    done.set()
    other.join()
    assert spent > 0.05, "the call is long enough to tell"
    assert during > 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_computes(kernel: Any) -> None:
    """It has none of its parent's threads, whatever they were doing."""
    kernel.set_threads(3)
    call = long_call(kernel)
    wanted = call.run_short()
    busy = threading.Thread(target=lambda: call.run(kernel.Task()))
    busy.start()
    time.sleep(0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of threads in a process that forks
        child = os.fork()
    if child == 0:
        good = False
        try:
            good = kernel.threads() == 3 and all(np.array_equal(call.run_short(), wanted) for _ in range(5))
        finally:
            os._exit(0 if good else 1)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    busy.join()
    assert ended == (child, 0)


def test_the_number_of_threads_is_bounded(kernel: Any) -> None:
    for count in (0, -1, 257):
        with pytest.raises((ValueError, TypeError)):
            kernel.set_threads(count)
    kernel.set_threads(5)
    assert kernel.threads() == 5
