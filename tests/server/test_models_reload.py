"""Versions come and go while the server serves; whatever is refused changes nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from admin_caller import ADMIN, Administrator, administrator
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import PARAMS, Caller, failure, spec_digest

from protos.admin import VersionState
from server.engine.engine import Engine
from server.models import checksums
from server.models.manager import ModelManager
from server.running import RunningServer

Serve = Callable[..., tuple[RunningServer, Caller]]


def put(root: Path, version: str, name: str = "digits", **record: Any) -> Path:
    """Write a version as an operator does: whole, then moved to its place."""
    directory = root / "models" / name / version
    part = root / f"part-{name}-{version}"
    part.mkdir()
    (part / "model.json").write_text(json.dumps({"params": PARAMS, **record}))
    directory.parent.mkdir(exist_ok=True)
    part.rename(directory)
    return directory


@pytest.fixture
def hot(serve: Serve) -> Iterator[tuple[Administrator, Caller]]:
    """A server with an administrator."""
    server, caller = serve(admin=ADMIN)
    with administrator(server.admin_address) as admin:
        yield admin, caller


def served_by(caller: Caller, keys: str, **changes: Any) -> str:
    return caller.infer(keys, b"echo:x", **changes).version


def test_a_new_version_is_served_after_it_is_loaded(hot: tuple[Administrator, Caller], tmp_path: Path) -> None:
    admin, caller = hot
    keys = caller.upload().key_set_id
    put(tmp_path, "12")
    assert admin.versions()["digits", "12"].state is VersionState.PRESENT
    assert served_by(caller, keys) == "10", "being there is not being served"
    loaded = admin.load("digits", "12")
    assert loaded.state is VersionState.SERVED and loaded.is_default
    assert served_by(caller, keys) == "12"
    assert served_by(caller, keys, client_spec_digest=spec_digest("10")) == "10", "packed by the older version's spec"
    assert served_by(caller, keys, version="2") == "2"
    mixed = failure(lambda: served_by(caller, keys, version="12", client_spec_digest=spec_digest("10")))
    assert mixed.reason == "VERSION_UNKNOWN", "a version that is named is not replaced by another"


def test_only_the_newest_versions_and_the_default_are_kept(hot: tuple[Administrator, Caller], tmp_path: Path) -> None:
    admin, caller = hot
    assert admin.set_default("digits", "2") == "2"
    for version in ("12", "13", "14"):
        put(tmp_path, version)
        admin.load("digits", version)
    listed = caller.get_model().summary
    assert (list(listed.versions), listed.default_version) == (["2", "12", "13", "14"], "2")
    assert admin.versions()["digits", "10"].state is VersionState.PRESENT, "it may be loaded again"
    gone = failure(lambda: caller.offer(client_spec_digest=spec_digest("10")))
    assert gone.reason == "MODEL_UNKNOWN"
    assert admin.set_default("digits") == "14", "without a version: the latest"


def test_the_default_outlives_a_restart_and_is_not_taken_over(serve: Serve, tmp_path: Path) -> None:
    server, _ = serve(admin=ADMIN)
    with administrator(server.admin_address) as admin:
        put(tmp_path, "12")
        assert not admin.load("digits", "12", keep_default=True).is_default
    server.stop()
    _, caller = serve()
    assert caller.get_model().summary.default_version == "10"


def test_files_that_changed_are_refused_and_the_served_ones_stay(
    hot: tuple[Administrator, Caller], tmp_path: Path
) -> None:
    admin, caller = hot
    keys = caller.upload().key_set_id
    (tmp_path / "models" / "digits" / "10" / "model.json").write_text(json.dumps({"params": PARAMS, "other": 1}))
    refused = failure(lambda: admin.load("digits", "10"))
    assert refused.reason == "DIGEST_MISMATCH" and "new version number" in refused.message
    sealed = put(tmp_path, "12")
    checksums.write_list(sealed)
    (sealed / "model.json").write_text(json.dumps({"params": PARAMS, "tampered": True}))
    refused = failure(lambda: admin.load("digits", "12"))
    assert refused.reason == "DIGEST_MISMATCH" and "model.json" in refused.message
    assert served_by(caller, keys) == "10"
    assert admin.versions()["digits", "12"].reason == "DIGEST_MISMATCH"
    assert failure(lambda: caller.get_model("digits", "12")).reason == "DIGEST_MISMATCH"


def test_a_worker_that_starts_later_loads_what_was_verified(serve: Serve, tmp_path: Path) -> None:
    """The directory may have changed since; without a copy it would evaluate something else, or nothing."""
    server, caller = serve()
    keys = caller.upload().key_set_id
    (tmp_path / "models" / "digits" / "10" / "model.json").unlink()
    assert failure(lambda: caller.infer(keys, b"die")).reason == "WORKER_LOST"
    assert served_by(caller, keys) == "10"
    assert len(server.worker_pids()) == 1


def test_what_cannot_be_served_is_refused(hot: tuple[Administrator, Caller], tmp_path: Path) -> None:
    admin, caller = hot
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("12", {"broken": True}, "PLAN_VERSION_UNKNOWN"),
        ("13", {"explodes": True}, "MODEL_INVALID"),
        ("14", {"max_request_bytes": 1 << 40}, "LIMIT_EXCEEDED"),
        ("15", {"build_seconds": "none"}, "INTERNAL"),  # verifies, but no worker can load it
    )
    for version, record, reason in cases:
        put(tmp_path, version, **record)
        assert failure(lambda version=version: admin.load("digits", version)).reason == reason  # type: ignore[misc]
        assert admin.versions()["digits", version].state is VersionState.REFUSED
    assert served_by(caller, caller.upload().key_set_id) == "10"


def test_unloading(hot: tuple[Administrator, Caller]) -> None:
    admin, caller = hot
    keys = caller.upload().key_set_id
    health = health_pb2_grpc.HealthStub(caller.channel)

    def healthy(model: str) -> int:
        return int(health.Check(health_pb2.HealthCheckRequest(service=f"model/{model}"), timeout=5).status)

    assert failure(lambda: admin.unload("digits", "10")).reason == "MODEL_INVALID", "the default of several"
    under_way = caller.inference.Infer.future(caller.request(keys, b"sleep:0.5", version="2"), timeout=20)
    assert served_by(caller, keys, version="2") == "2"  # so the one before it has begun
    admin.unload("digits", "2")
    assert under_way.result().version == "2"
    assert failure(lambda: served_by(caller, keys, version="2")).reason == "MODEL_UNKNOWN"
    assert healthy("other") == health_pb2.HealthCheckResponse.SERVING
    admin.unload("other", "1")
    assert healthy("other") == health_pb2.HealthCheckResponse.NOT_SERVING
    assert healthy("digits") == health_pb2.HealthCheckResponse.SERVING
    for absent in (("digits", ""), ("digits", "2"), ("nope", "1")):
        assert failure(lambda absent=absent: admin.unload(*absent)).reason == "MODEL_UNKNOWN"  # type: ignore[misc]
    assert failure(lambda: admin.load("digits", "99")).reason == "MODEL_UNKNOWN"
    assert failure(lambda: admin.set_default("digits", "99")).reason == "MODEL_UNKNOWN"


def test_workers_that_start_later_load_the_defaults_first(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[str]] = []
    monkeypatch.setattr(
        Engine, "preload_later", lambda self, models: told.append([f"{m.name} {m.version}" for m in models])
    )
    server, _ = serve(admin=ADMIN)
    with administrator(server.admin_address) as admin:
        put(tmp_path, "12")
        admin.load("digits", "12")
        admin.set_default("digits", "10")
        admin.unload("digits", "2")
    assert told == [
        ["digits 12", "other 1", "digits 2", "digits 10"],
        ["digits 10", "other 1", "digits 2", "digits 12"],
        ["digits 10", "other 1", "digits 12"],
    ]


@contextmanager
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A function that waits until the directory has been looked at twice from now on."""
    looks = threading.Semaphore(0)
    poll = ModelManager.poll

    async def counted(self: ModelManager) -> None:
        await poll(self)
        looks.release()

    monkeypatch.setattr(ModelManager, "poll", counted)

    def wait() -> None:
        while looks.acquire(blocking=False):
            pass
        for _ in range(3):  # the first may have begun before
            assert looks.acquire(timeout=20)

    yield wait


def test_new_versions_are_found_once_they_are_whole(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with looked_at(monkeypatch) as look:
        _, caller = serve(repository={"poll_seconds": 0.02})
        keys = caller.upload().key_set_id
        directory = tmp_path / "models" / "digits" / "12"
        directory.mkdir()  # half of it is there
        look()
        assert served_by(caller, keys) == "10"
        (directory / "model.json").write_text(json.dumps({"params": PARAMS}))
        look()
        assert served_by(caller, keys) == "12"
        (directory / "model.json").write_text("{")
        put(tmp_path, "1")
        look()
        listed = caller.get_model().summary
        assert list(listed.versions) == ["2", "10", "12"], "too old to be kept, and served ones are not looked at"


def test_the_version_changes_under_load_without_a_failed_request(serve: Serve, tmp_path: Path) -> None:
    server, caller = serve(engine={"workers": 2}, admin=ADMIN)
    keys = caller.upload().key_set_id
    ended = threading.Event()

    def call() -> list[str]:
        seen = []
        while not ended.is_set():
            seen.append(served_by(caller, keys))
            served_by(caller, keys, client_spec_digest=spec_digest("10"))
        return seen

    with administrator(server.admin_address) as admin, ThreadPoolExecutor(3) as pool:
        callers = [pool.submit(call) for _ in range(3)]
        for version in ("12", "13"):
            put(tmp_path, version, build_seconds=0.2)
            admin.load("digits", version)
            assert served_by(caller, keys) == version
        admin.set_default("digits", "12")
        assert served_by(caller, keys) == "12"
        ended.set()
        seen = [c.result() for c in callers]  # raises where a call failed
    for answers in seen:
        changes = iter(["10", "12", "13", "12"])
        assert all(version in changes for version, _ in groupby(answers)), "each change is seen once, and in its order"
