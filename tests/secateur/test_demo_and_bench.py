"""demo, bench and doctor: the keys that they promise, small enough to run as tests."""

from __future__ import annotations

import re
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from he_runtime import compile
from he_runtime.kernel import KernelStatus
from he_runtime.plan.counts import leaf_totals
from secateur import demo
from secateur.artifacts import dense_twin
from secateur.trained import trained

DEMO_KEYS = {
    "answer", "clear_answer", "label", "predicted_ms", "measured_ms", "up_bytes", "down_bytes", "key_bytes",
    "dense_counts", "planned_counts", "counts",
}  # fmt: skip
TENSEAL_KEYS = {"tenseal_s", "ours_s", "ratio", "argmax_matches", "images", "relative_error", "N", "log2_qp"}
ACCURACY_KEYS = {
    "images", "argmax_matches", "encrypted_accuracy", "clear_accuracy", "rms_error", "sigma", "rms_over_sigma",
    "max_error", "error_bound", "within_bound", "median_margin", "bound_over_margin", "logit_rms_change",
    "stage_accuracy", "N", "log2_qp", "backend", "data", "machine", "threads",
}  # fmt: skip
LATENCY_KEYS = {
    "network", "fits", "predicted_ms", "measured_ms", "wall_ms", "ratio", "runs", "disturbed_runs", "counters_equal",
    "counts", "N", "log2_qp",
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_a_network_is_trained_once(recipe: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = trained(str(recipe), cache)
    assert "trained in" in capsys.readouterr().err
    again = trained(str(recipe), cache)
    said = capsys.readouterr().err
    assert "reusing the network" in said and "trained in" not in said
    assert again.digest == first.digest
    (directory,) = cache.iterdir()
    (directory / "DIGEST").write_text("0" * 64)
    anew = trained(str(recipe), cache)
    assert "training again" in capsys.readouterr().err
    assert all(np.array_equal(values, anew.arrays[name]) for name, values in first.arrays.items())


def test_demo(ask: Any, recipe: Path, cache: Path, images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.demo.CALIBRATION_SECONDS", 0.5)
    monkeypatch.setattr("secateur.demo.RUNS", 2)
    record = ask("demo", "--recipe", recipe, "--cache", cache, "--image", 3)
    assert set(record) >= DEMO_KEYS
    model = trained(str(recipe), cache)
    plan = compile(model)
    assert record["answer"] == record["clear_answer"]
    assert record["label"] in range(10)
    assert record["counts"] == leaf_totals(plan.counts_on(record["backend"])), "executed is planned"
    assert record["planned_counts"] == leaf_totals(plan.counts)
    assert record["dense_counts"] == leaf_totals(compile(dense_twin(model)).counts)
    assert 0 < record["max_error"] <= record["error_bound"]
    assert record["predicted_ms"] > 0 and record["measured_ms"] > 0
    assert record["threads"] == 1, "calibrated on as many threads as the worker has"

    console = Console(file=StringIO(), width=80, markup=False)
    demo._render(console, record, images[3])
    shown = console.file.getvalue()
    for word in ("encrypted answer", "clear answer", "predicted", "measured", "up,", "down,", "dense", "compressed"):
        assert word in shown
    assert f"{record['up_bytes']:,} up, {record['down_bytes']:,} down" in shown


def test_bench_tenseal(ask: Any, cache: Path, tmp_path: Path) -> None:
    """TenSEAL's tutorial against this project on one image, on upscaled digits as no MNIST is there."""
    recipe = tmp_path / "tutorial.toml"
    recipe.write_text(
        "name = 'tutorial'\nnetwork = 'mnist-tenseal-cnn'\ndataset = 'mnist'\ntrain_limit = 256\n[teacher]\nepochs = 2\n"
    )
    record = ask("bench", "tenseal-cnn", "--images", 1, "--recipe", recipe, "--cache", cache)
    assert set(record) >= TENSEAL_KEYS
    assert record["data"] == "digits-upscaled"
    assert record["argmax_matches"] == record["images"] == 1
    assert record["ratio"] == record["tenseal_s"] / record["ours_s"] >= 8
    assert record["relative_error"] <= 0.02
    assert record["tenseal_relative_error"] <= 0.2, "the baseline computes the same network"
    assert record["encode_s"] > 0
    assert record["N"] == 8192 and record["log2_qp"] <= 214


def test_bench_accuracy(ask: Any, recipe: Path, cache: Path) -> None:
    record = ask("bench", "accuracy", "--images", 3, "--recipe", recipe, "--cache", cache)
    assert set(record) == ACCURACY_KEYS
    assert record["images"] == record["argmax_matches"] == 3
    assert record["within_bound"]
    assert record["rms_over_sigma"] == pytest.approx(record["rms_error"] / record["sigma"])
    assert set(record["stage_accuracy"]) == {"teacher", "quadratics", "diagonals", "integers", "final"}


def test_bench_latency(ask: Any) -> None:
    record = ask("bench", "latency", "--network", "digits-mlp", "--seconds", 0.5)
    assert set(record) == {"machine", "backend", "threads", "networks"}
    (row,) = record["networks"]
    assert set(row) == LATENCY_KEYS
    assert (row["network"], row["fits"], row["runs"], row["counters_equal"]) == ("digits-mlp", True, 7, True)
    assert row["ratio"] == pytest.approx(row["predicted_ms"] / row["measured_ms"])


def test_a_network_larger_than_the_memory_is_left_out(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.bench_latency._free_bytes", lambda: 1 << 20)
    said = cli("bench", "latency", "--network", "digits-mlp", "--seconds", 0.2)
    assert said.code == 0
    assert "does not fit" in said.out


def test_doctor(ask: Any) -> None:
    record = ask("doctor")
    assert set(record) == {"ok", "ready", "system", "cores", "checks"}
    assert record["ok"] is True
    assert {"prep", "client", "server"} <= set(record["ready"])
    found = {check["name"]: check for check in record["checks"]}
    assert re.match(r"numpy \d", found["base"]["detail"])
    assert found["back end tenseal"]["status"] == "ok"
    assert "evaluates" in found["back end tenseal"]["detail"]


def test_doctor_tells_absent_from_broken(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    from he_runtime.errors import BackendUnavailable

    installed = metadata.version

    def version(name: str) -> str:
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    def missing(*_: object) -> None:
        raise BackendUnavailable("cannot use it: not installed; try pip")

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr("he_runtime.execute.open_backend", missing)
    said = cli("doctor")
    assert said.code == 0, "what was not asked for is no fault"
    assert re.search(r"prep +absent +without torch; try pip install 'secateur\[prep\]'", said.out)
    assert re.search(r"back end tenseal +absent", said.out)
    assert re.search(r"ready for: client, server", said.out)

    def wrong(*_: object) -> None:
        raise OSError("bad library")

    monkeypatch.setattr("he_runtime.execute.open_backend", wrong)
    said = cli("doctor")
    assert said.code == 1
    assert re.search(r"back end tenseal +broken +OSError: bad library", said.out)


def test_doctor_names_the_path_of_the_kernel(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = KernelStatus(True, "avx2", None, ("portable", "avx2"))
    monkeypatch.setattr("he_runtime.kernel.status", lambda: fake)
    (found,) = [check for check in ask("doctor")["checks"] if check["name"] == "native kernel"]
    assert found == {"name": "native kernel", "status": "ok", "detail": "path avx2 (of portable, avx2)"}


def test_doctor_says_why_there_is_no_kernel(ask: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "absence.txt").write_text("no C++ compiler\n")
    monkeypatch.setattr("he_runtime.kernel.availability._FOLDER", tmp_path)
    monkeypatch.setitem(sys.modules, "he_runtime.kernel._kernel", None)
    record = ask("doctor")
    assert record["ok"] is True, "a machine without a compiler is no fault"
    (found,) = [check for check in record["checks"] if check["name"] == "native kernel"]
    assert found["status"] == "absent"
    assert re.match(
        r"not built at installation: no C\+\+ compiler; the tenseal backend will be used; try .*C\+\+17",
        found["detail"],
    )
