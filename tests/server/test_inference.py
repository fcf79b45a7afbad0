"""Inference over the network: what is refused, what is shared, and that the server goes on after each fault."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from fake_runtime import LIBRARY_TEXT
from harness import KEYS, OTHER_PARAMS, Caller, failure, sha256, spec_digest

from server.running import RunningServer


@pytest.fixture(scope="module")
def key_set(shared: tuple[RunningServer, Caller]) -> str:
    return shared[1].upload().key_set_id


@pytest.fixture(autouse=True)
def still_serving(shared: tuple[RunningServer, Caller], key_set: str) -> object:
    """After every test the server answers as before."""
    yield
    assert shared[1].infer(key_set, b"echo:after").ciphertexts.endswith(b"|after")


def test_a_reply_carries_everything(caller: Caller, key_set: str) -> None:
    reply = caller.infer(key_set, b"echo:hello", version="2", client_spec_digest=spec_digest("2"))
    assert reply.ciphertexts == sha256(KEYS).encode() + b"|hello"
    assert (reply.model, reply.version, reply.plan_digest, reply.wire_version) == ("digits", "2", sha256(b"2"), 1)
    assert reply.counts["rotate"] == 3 and reply.server_build
    assert reply.timings.evaluate_ms > 0 and reply.timings.queue_ms >= 0


def test_keys_stay_loaded_in_a_worker(caller: Caller, key_set: str) -> None:
    replies = [caller.infer(key_set, b"echo:%d" % i) for i in range(6)]
    assert {r.counts["key_loads"] for r in replies} == {replies[0].counts["key_loads"]}
    assert len({r.counts["pid"] for r in replies}) == 1, "an idle worker that holds the keys is preferred"


def test_the_default_version_is_the_latest_that_verifies(caller: Caller, key_set: str) -> None:
    assert caller.infer(key_set, b"echo:x").version == "10"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "nope"}, "MODEL_UNKNOWN"),
        ({"version": "3"}, "MODEL_UNKNOWN"),
        ({"version": "11"}, "PLAN_VERSION_UNKNOWN"),
        ({"client_spec_digest": "00" * 32}, "VERSION_UNKNOWN"),
        ({"model": "other"}, "KEY_PARAMETERS_DIFFER"),
        ({"payload": b""}, "BYTES_TRUNCATED"),
        ({"payload": b"garbage"}, "BYTES_MALFORMED"),
        ({"payload": b"level:"}, "LEVEL_MISMATCH"),
        ({"payload": bytes(2 << 20)}, "LIMIT_EXCEEDED"),
        ({"request_id": "x" * 129}, "LIMIT_EXCEEDED"),
        ({"key_set_id": "0" * 32}, "KEY_SET_UNKNOWN"),
        ({"key_set_id": ""}, "KEY_SET_UNKNOWN"),
    ],
)
def test_bad_requests(caller: Caller, key_set: str, changes: dict[str, object], reason: str) -> None:
    refused = failure(lambda: caller.infer(**{"key_set_id": key_set, "payload": b"echo:x", **changes}))
    assert refused.reason == reason and refused.message


def test_another_clients_keys_look_like_no_keys(caller: Caller, key_set: str) -> None:
    """One who knows that a set exists, and even its digest, learns nothing by guessing ids."""
    guesses = [sha256(KEYS), sha256(key_set.encode()), key_set[:-1] + ("0" if key_set[-1] != "0" else "1"), "f" * 32]
    answers = {
        (a.reason, a.code, a.message) for a in (failure(lambda g=g: caller.infer(g, b"echo:x")) for g in guesses)
    }
    assert len(answers) == 1 and answers.pop()[0] == "KEY_SET_UNKNOWN"


def test_a_library_error_leaves_as_an_incident_without_its_text(caller: Caller, key_set: str) -> None:
    broken = failure(lambda: caller.infer(key_set, b"library:"))
    assert broken.code is grpc.StatusCode.INTERNAL and broken.reason == "INTERNAL"
    assert len(broken.metadata["incident"]) == 12 and broken.metadata["incident"] in broken.message
    assert LIBRARY_TEXT not in broken.message and "0xdeadbeef" not in repr(broken)


def test_a_worker_imports_neither_grpc_nor_torch(caller: Caller, key_set: str) -> None:
    assert caller.infer(key_set, b"grpc:").ciphertexts == b"[]"


def test_a_worker_that_dies_costs_one_request(
    caller: Caller, key_set: str, shared: tuple[RunningServer, Caller]
) -> None:
    before = set(shared[0].worker_pids())
    lost = failure(lambda: caller.infer(key_set, b"die:"))
    assert (lost.reason, lost.code) == ("WORKER_LOST", grpc.StatusCode.UNAVAILABLE)
    assert lost.retry_after_seconds is not None
    deadline = time.monotonic() + 20
    while len(set(shared[0].worker_pids()) - before) < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(set(shared[0].worker_pids()) - before) == 1


def test_an_idle_worker_that_was_killed_is_replaced(
    caller: Caller, key_set: str, shared: tuple[RunningServer, Caller]
) -> None:
    pid = caller.infer(key_set, b"echo:x").counts["pid"]
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    outcomes = [caller.infer(key_set, b"echo:x").counts["pid"] for _ in range(2)]
    assert pid not in outcomes, "and no request fails for it"
    deadline = time.monotonic() + 20
    while pid in shared[0].worker_pids() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pid not in shared[0].worker_pids()


def test_the_deadline_frees_caller_and_worker(caller: Caller, key_set: str) -> None:
    started = time.monotonic()
    late = failure(lambda: caller.infer(key_set, b"sleep:30", timeout=0.3))
    assert late.reason == "DEADLINE_EXCEEDED" and time.monotonic() - started < 3
    _both_workers_are_free(caller, key_set)


def test_a_cancelled_call_frees_its_worker(caller: Caller, key_set: str, shared: tuple[RunningServer, Caller]) -> None:
    before = shared[0].worker_pids()
    for _ in range(2):
        call = caller.inference.Infer.future(caller.request(key_set, b"sleep:30"), timeout=60)
        time.sleep(0.2)
        assert call.cancel()
    _both_workers_are_free(caller, key_set)
    time.sleep(0.6)  # past the grace period, after which a deaf worker would have been replaced
    assert shared[0].worker_pids() == before


def test_a_worker_that_ignores_cancellation_is_replaced(
    caller: Caller, key_set: str, shared: tuple[RunningServer, Caller]
) -> None:
    before = set(shared[0].worker_pids())
    assert failure(lambda: caller.infer(key_set, b"hang:", timeout=0.2)).reason == "DEADLINE_EXCEEDED"
    deadline = time.monotonic() + 20
    while not set(shared[0].worker_pids()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    _both_workers_are_free(caller, key_set)


def _both_workers_are_free(caller: Caller, key_set: str) -> None:
    """Two sleeps at once take as long as one."""
    with ThreadPoolExecutor(2) as pool:
        started = time.monotonic()
        replies = list(pool.map(lambda _: caller.infer(key_set, b"sleep:0.5"), range(2)))
    assert [r.ciphertexts for r in replies] == [b"slept"] * 2
    assert max(r.timings.queue_ms for r in replies) < 5000 and time.monotonic() - started < 10


def test_equal_request_ids_get_one_evaluation(caller: Caller, key_set: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(caller.infer, key_set, b"sleep:0.3", request_id="one") for _ in range(3)]
        timings = {c.result().timings.evaluate_ms for c in calls}
    assert len(timings) == 1, "three callers, one evaluation"
    again = caller.infer(key_set, b"sleep:0.3", request_id="one")
    assert {again.timings.evaluate_ms} == timings, "a late repeat gets the remembered reply"


def test_an_equal_id_for_other_content_is_another_request(caller: Caller, key_set: str) -> None:
    replies = [caller.infer(key_set, p, request_id="same").ciphertexts for p in (b"echo:a", b"echo:b")]
    assert replies[0].endswith(b"|a") and replies[1].endswith(b"|b")


def test_a_reply_over_the_limit_is_an_error_and_not_a_crash(caller: Caller, key_set: str) -> None:
    assert failure(lambda: caller.infer(key_set, b"big:2000000")).reason == "LIMIT_EXCEEDED"


def test_a_full_queue_turns_callers_away_at_once(serve: object) -> None:
    _, caller = serve(limits={"max_queue": 1})  # type: ignore[operator]
    keys = caller.upload().key_set_id
    held = [caller.inference.Infer.future(caller.request(keys, b"sleep:0.8"), timeout=20) for _ in range(2)]
    time.sleep(0.3)
    started = time.monotonic()
    busy = failure(lambda: caller.infer(keys, b"echo:x"))
    assert time.monotonic() - started < 1.0
    assert (busy.reason, busy.code) == ("SERVER_BUSY", grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert busy.retry_after_seconds is not None and busy.retry_after_seconds > 0
    assert [h.result().ciphertexts for h in held] == [b"slept"] * 2
    assert caller.infer(keys, b"echo:x").ciphertexts


def test_a_missing_backend_is_named(serve: object) -> None:
    _, caller = serve(engine={"backend": "absent"}, keys={"validate_on_commit": False})  # type: ignore[operator]
    absent = failure(lambda: caller.infer(caller.upload().key_set_id, b"echo:x"))
    assert absent.reason == "BACKEND_UNAVAILABLE" and "pip install absent" in absent.message


def test_stopping_drains_what_is_under_way(serve: object) -> None:
    server, caller = serve()  # type: ignore[operator]
    keys = caller.upload().key_set_id
    under_way = caller.inference.Infer.future(caller.request(keys, b"sleep:0.8"), timeout=20)
    time.sleep(0.2)
    stopper = threading.Thread(target=server.stop)
    stopper.start()
    assert under_way.result().ciphertexts == b"slept"
    stopper.join(10)
    assert not stopper.is_alive()
    assert failure(lambda: caller.infer(keys, b"echo:x")).reason == "SERVER_UNREACHABLE"


def test_parameters_of_other_models_stay_apart(caller: Caller) -> None:
    data = b"KEYS for other parameters"
    keys = caller.upload(data, params_digest=OTHER_PARAMS, client_spec_digest=spec_digest("1", "other"))
    assert caller.infer(keys.key_set_id, b"echo:x", model="other").ciphertexts.endswith(b"|x")
    assert failure(lambda: caller.infer(keys.key_set_id, b"echo:x")).reason == "KEY_PARAMETERS_DIFFER"


def test_a_call_without_a_deadline_and_one_that_shares_but_runs_out_of_time(caller: Caller, key_set: str) -> None:
    assert caller.inference.Infer(caller.request(key_set, b"echo:x")).ciphertexts.endswith(b"|x")
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(caller.infer, key_set, b"sleep:1.0", request_id="shared")
        time.sleep(0.2)
        hasty = failure(lambda: caller.infer(key_set, b"sleep:1.0", timeout=0.2, request_id="shared"))
        assert hasty.reason == "DEADLINE_EXCEEDED"
        assert patient.result().ciphertexts == b"slept", "the other caller is not harmed"


def test_a_shared_request_is_cancelled_with_its_last_caller(caller: Caller, key_set: str) -> None:
    for _ in range(2):
        call = caller.inference.Infer.future(caller.request(key_set, b"sleep:30", request_id=f"r{_}"), timeout=60)
        time.sleep(0.2)
        call.cancel()
    _both_workers_are_free(caller, key_set)
