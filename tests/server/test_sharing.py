"""Workers of one machine share a model's encoded weights: where they are, who may write there, and what is kept."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import fake_runtime
import pytest

from he_runtime import compile
from he_runtime.kernel import status
from server.config import EngineConfig, ServerConfig
from server.engine import he_model
from server.engine.runtime import OPERANDS, ModelDescription
from server.engine.worker_process import WorkerSettings, _environment
from server.scale.operands import prepare
from tests.he_runtime.networks import NETWORKS

PLAN = "ab" * 32


@pytest.fixture
def model(tmp_path: Path) -> ModelDescription:
    (tmp_path / "model.json").write_text('{"params": "p"}')
    return replace(fake_runtime.describe(tmp_path, "m", "1"), plan_digest=PLAN)


def test_only_what_is_served_stays(tmp_path: Path, model: ModelDescription) -> None:
    config = ServerConfig(state=tmp_path / "state")
    directory = prepare(config, [model])
    assert directory == tmp_path / "state" / "operands" and directory.stat().st_mode & 0o777 == 0o700
    stay = {f"{PLAN}-1.operands", f"{PLAN}-1.lock", "an operator's own"}
    for name in (*stay, f"{'cd' * 32}-1.operands", f"{'cd' * 32}-1.lock", "part-x1y2"):
        (directory / name).write_text("")
    assert prepare(config, [model]) == directory
    assert set(os.listdir(directory)) == stay


def test_a_directory_that_others_write_to_is_not_used(tmp_path: Path, model: ModelDescription) -> None:
    config = ServerConfig(state=tmp_path, engine=EngineConfig(operands=tmp_path / "open"))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert prepare(config, [model]) is None
    config = ServerConfig(state=tmp_path, engine=EngineConfig(operands=tmp_path / "model.json" / "below"))
    assert prepare(config, [model]) is None


def test_a_worker_is_told_where(tmp_path: Path) -> None:
    def told(engine: EngineConfig) -> str | None:
        return _environment(WorkerSettings(engine, 1, "error")).get(OPERANDS)

    assert told(EngineConfig(operands=tmp_path)) == str(tmp_path)
    assert told(EngineConfig()) == os.environ.get(OPERANDS)


@pytest.mark.skipif(not status().available, reason="the kernel is not built")
def test_a_worker_maps_what_another_has_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPERANDS, str(tmp_path / "operands"))
    served_model = tmp_path / "model"
    compile(NETWORKS["mlp"]().calibrated("sharing"), degrees=(8192, 16384), max_error=1.0).save(served_model / "plan")
    he_model.build(served_model, "native")
    (path,) = (tmp_path / "operands").glob("*.operands")
    written = path.stat()
    he_model.build(served_model, "native")
    assert path.stat().st_mtime_ns == written.st_mtime_ns and path.stat().st_ino == written.st_ino
