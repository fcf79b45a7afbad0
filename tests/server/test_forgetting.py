"""Deleted key sets leave the memory of the workers: of idle ones at once, of busy ones between two operations."""

from __future__ import annotations

import importlib
import random
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness import failure
from memories import holds, until
from scraping import Scrape

from benchmarks.service.deadline import wide_model
from he_runtime import compile
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.kernel import status
from he_runtime.wire import KeySetWriter
from protos.gen.secateur.v1 import keys_pb2
from server.engine import he_model
from server.engine.forgetting import ForgetBoard, HeldKeys
from server.engine.frames import Job
from server.engine.worker import Worker

SIZE = SimpleNamespace(byte_size=1)


def keys_of(seed: int) -> bytes:
    """A key file of a megabyte that holds nothing which the memory of a process holds for other reasons."""
    return b"KEYS" + random.Random(seed).randbytes(1 << 20)


@pytest.fixture
def held() -> tuple[ForgetBoard, HeldKeys]:
    memory = bytearray(ForgetBoard.SIZE)
    posted = ForgetBoard(memory)
    held = HeldKeys(1 << 20, ForgetBoard(memory))
    for name in ("a", "b", "c"):
        held.put("model", name, SIZE)
    held.put("other model", "a", SIZE)
    return posted, held


def test_a_set_goes_at_the_next_look_under_every_model(held: tuple[ForgetBoard, HeldKeys]) -> None:
    board, sets = held
    board.post("a")
    assert sorted(sets.names()) == ["a", "a", "b", "c"]
    sets.forget()
    assert sets.names() == ["b", "c"] and sets.figures()["bytes"] == 2
    board.post("a")  # once more, and one that is not held
    board.post("nobody's")
    sets.forget()
    assert sets.names() == ["b", "c"] and sets.figures()["evictions"] == 0


def test_the_set_in_use_goes_after_the_job(held: tuple[ForgetBoard, HeldKeys]) -> None:
    board, sets = held
    sets.begin("a")
    board.post("a")
    board.post("b")
    sets.forget()
    assert sorted(sets.names()) == ["a", "a", "c"]
    sets.end()
    assert sets.names() == ["c"]
    sets.begin("c")
    sets.end()
    assert sets.names() == ["c"], "what one job dropped is no concern of the next"


def test_a_set_that_is_deleted_while_it_is_loaded_does_not_stay(held: tuple[ForgetBoard, HeldKeys]) -> None:
    board, sets = held
    sets.begin("new")
    board.post("new")
    sets.forget()  # between two keys of the file
    sets.put("model", "new", SIZE)
    sets.end()
    assert "new" not in sets.names()


def test_more_names_than_the_board_has_places_drop_everything(held: tuple[ForgetBoard, HeldKeys]) -> None:
    board, sets = held
    for number in range(ForgetBoard.PLACES - 1):
        board.post(str(number))
    sets.forget()
    assert len(sets.names()) == 4
    sets.begin("c")
    for number in range(ForgetBoard.PLACES):
        board.post(str(number))
    sets.forget()
    assert sets.names() == ["c"]
    sets.end()
    assert sets.names() == []


def test_memory_is_given_back_after_a_drop_only(held: tuple[ForgetBoard, HeldKeys]) -> None:
    board, _ = held
    released: list[int] = []
    sets = HeldKeys(1 << 20, board, lambda: released.append(len(sets.names())))
    sets.put("model", "a", SIZE)
    board.post("another")
    sets.forget()
    assert released == []
    board.post("a")
    sets.forget()
    assert released == [0]


@pytest.mark.skipif(not status().available, reason="the kernel is not built")
def test_loaded_keys_of_the_kernel_are_freed(tmp_path: Path) -> None:
    model = wide_model(16)
    plan = compile(model, degrees=(8192,))
    directory = model.save(tmp_path / "1")
    plan.save(directory / "plan")
    secret = SecretKey.generate(plan.params)
    with (tmp_path / "keys").open("wb") as file, KeySetWriter(file, plan.params, plan.keys) as writer:
        for record in secret.make_keys(plan.keys):
            writer.write(record)
    memory = bytearray(ForgetBoard.SIZE)
    board = ForgetBoard(memory)
    worker = Worker(he_model, "native", 1 << 30, 1, 1 << 20, gone=ForgetBoard(memory))

    def do(kind: Any, **about: str) -> None:
        worker.do(Job(1, kind, str(directory), time.monotonic() + 60, **about), b"", lambda: None)

    do("check_keys", key_path=str(tmp_path / "keys"), key_sha256="a")
    keys = worker.keys.get(str(directory), "a")
    loaded = weakref.ref(keys)  # type: ignore[arg-type]
    del keys
    assert loaded() is not None and worker.keys.figures()["bytes"] > 1 << 20
    board.post("a")
    do("forget")
    kernel = importlib.import_module("he_runtime.kernel._kernel")
    assert loaded() is None and kernel.cached_bytes() == 0, "neither Python nor the kernel's cache has them"


class Held:
    """What a server's workers hold, as its metrics tell."""

    def __init__(self, server: Any) -> None:
        self._address = server.metrics_address

    def __call__(self) -> list[int]:
        scrape = Scrape.at(self._address)
        return [int(scrape("key_cache_bytes", worker=str(worker))) for worker in range(2)]


@pytest.fixture
def two(serve: Any) -> tuple[Any, Any, Held]:
    server, caller = serve(engine={"workers": 2}, metrics={"address": "0"}, keys={"validate_on_commit": False})
    return server, caller, Held(server)


@contextmanager
def both_busy(server: Any, caller: Any, content: bytes, gates: Path) -> Iterator[tuple[str, list[Future[Any]]]]:
    """Two evaluations at once, so that each worker loads the keys and takes one; they end with the block."""
    key_set_id = caller.upload(content).key_set_id
    with ThreadPoolExecutor(2) as threads:
        calls = [threads.submit(caller.infer, key_set_id, b"steps:" + bytes(gates)) for _ in range(2)]
        try:
            until(lambda: all(holds(pid, content) for pid in server.worker_pids()))
            yield key_set_id, calls
        finally:
            open_gates(gates)
    assert all(call.result().ciphertexts == b"stepped" for call in calls)


def load_in_both(server: Any, caller: Any, content: bytes, gates: Path) -> str:
    with both_busy(server, caller, content, gates) as (key_set_id, _):
        return key_set_id


def open_gates(gates: Path) -> None:
    gates.mkdir(exist_ok=True)
    for number in range(3):
        (gates / str(number)).touch()


def delete(caller: Any, key_set_id: str) -> None:
    caller.keys.DeleteKeySet(keys_pb2.DeleteKeySetRequest(key_set_id=key_set_id), timeout=caller.timeout)


def test_a_deleted_set_leaves_every_idle_worker(two: tuple[Any, Any, Held], tmp_path: Path) -> None:
    server, caller, held = two
    gone, kept = keys_of(1), keys_of(2)
    first = load_in_both(server, caller, gone, tmp_path / "first")
    second = load_in_both(server, caller, kept, tmp_path / "second")
    assert held() == [len(gone) + len(kept)] * 2
    delete(caller, first)
    until(lambda: held() == [len(kept)] * 2)
    assert not any(holds(pid, gone) for pid in server.worker_pids()), "not only the books say so"
    assert all(holds(pid, kept) for pid in server.worker_pids())
    assert failure(lambda: caller.infer(first, b"echo:x")).reason == "KEY_SET_UNKNOWN"
    loads = caller.infer(second, b"echo:x").counts
    assert loads["key_loads"] == 2, "the other set did not have to be loaded again"


def test_a_busy_worker_drops_it_without_an_end_to_its_evaluation(two: tuple[Any, Any, Held], tmp_path: Path) -> None:
    server, caller, held = two
    gone, kept = keys_of(3), keys_of(8)
    first = load_in_both(server, caller, gone, tmp_path / "first")
    with both_busy(server, caller, kept, tmp_path / "gates") as (_, calls):
        delete(caller, first)
        until(lambda: not any(holds(pid, gone) for pid in server.worker_pids()))
        assert not any(call.done() for call in calls), "nobody waited for the evaluations"
    until(lambda: held() == [len(kept)] * 2)


def test_an_evaluation_that_uses_it_ends_and_then_it_is_gone(two: tuple[Any, Any, Held], tmp_path: Path) -> None:
    server, caller, held = two
    content = keys_of(4)
    key_set_id, gates = caller.upload(content).key_set_id, tmp_path / "gates"
    answers = []
    call = threading.Thread(target=lambda: answers.append(caller.infer(key_set_id, b"steps:" + bytes(gates))))
    call.start()
    until(lambda: any(holds(pid, content) for pid in server.worker_pids()))
    delete(caller, key_set_id)
    delete_again = failure(lambda: delete(caller, key_set_id))
    assert delete_again.reason == "KEY_SET_UNKNOWN" and not answers
    open_gates(gates)
    call.join()
    assert answers[0].ciphertexts == b"stepped"
    until(lambda: not any(holds(pid, content) for pid in server.worker_pids()))
    until(lambda: held() == [0, 0])


def test_evicted_and_expired_sets_go_too(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.keys import store as store_module

    monkeypatch.setattr(store_module, "_KEEPING_SECONDS", 0.1)
    settings = {"budget_bytes": 3 << 20, "tenant_budget_bytes": 3 << 20, "ttl_seconds": 1.0}
    server, caller = serve(metrics={"address": "0"}, keys=settings)
    held, contents = Held(server), [keys_of(seed) for seed in (5, 6, 7)]
    for content in contents:
        caller.infer(caller.upload(content).key_set_id, b"echo:x")
    until(lambda: held()[0] <= 2 * len(contents[0]), seconds=5.0)
    assert not holds(server.worker_pids()[0], contents[0]), "the third set left no room for the first"
    until(lambda: held()[0] == 0, seconds=5.0)
    assert not any(holds(server.worker_pids()[0], content) for content in contents)
