"""The sparsity benchmark on small networks: every check is made, on real ciphertexts, and can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.sweep_log import PointLog


def test_every_check_is_made(
    script: Any, said: Any, small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    module = script("sparsity")
    monkeypatch.setattr(module, "random_reference", lambda name: small)
    monkeypatch.setattr(module, "inputs", lambda name, count: np.random.default_rng(1).uniform(-1, 1, (count, 32)))
    arguments = ["--quick", "--runs", 1, "--log", tmp_path / "log.jsonl"]
    record = said(module, *arguments)
    for speedup in (record["grid_mlp"], record["grid_layer"]):
        assert speedup["rotations"][1] < speedup["rotations"][0]
        assert speedup["measured_speedup"] == pytest.approx(speedup["dense_ms"] / speedup["sparse_ms"])
        assert speedup["ratio_error"] == pytest.approx(speedup["measured_speedup"] / speedup["planned_speedup"] - 1)
    assert record["grid_layer"]["planner_speedup"] > 1
    assert record["column"]["weights"] == sorted(record["column"]["weights"], reverse=True)
    (batch,) = record["batches"]
    assert batch["samples"] == 8 and 1 < batch["batch"] <= 8
    assert 0 < batch["max_error"] <= batch["error_bound"]
    assert batch["argmax_matches"] >= batch["batch"] - 1, "two outputs may lie closer than the error"
    assert batch["each_ms"] == pytest.approx(batch["all_ms"] / 8)
    module.render(record)
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith(("ok", "MISS"))]) == 5


def bench_with(module: Any, path: Path, times: dict[str, float]) -> Any:
    """A bench whose log says that each point took so long."""
    log = PointLog(path, {})
    for name, ms in times.items():
        log.append(
            {
                "name": name,
                "measured_ms": ms,
                "predicted_ms": ms,
                "nonzeros": ms,
                "actual_sparsity": 0.9,
                "planner_ms": ms / 2,
                "rotations": 1,
                "products": 1,
            }
        )
    return module.Bench(log, runs=1)


@pytest.mark.parametrize(("sparse_ms", "ok"), [(95.1, True), (94.9, False), (105.1, False)])
def test_unstructured_zeros_must_not_matter(script: Any, tmp_path: Path, sparse_ms: float, ok: bool) -> None:
    module = script("sparsity")
    times = {"net, diagonal, dense, 0": 100.0, "net, diagonal, unstructured, 0.9": sparse_ms}
    found = module.unstructured(bench_with(module, tmp_path / "log", times), "net", (0.9,))
    assert found["ok"] is ok
    assert found["largest_change"] == pytest.approx(sparse_ms / 100 - 1)
    assert found["planner_speedups"] == pytest.approx([100 / sparse_ms])


@pytest.mark.parametrize(
    ("sparse", "planned", "ok"), [(39.0, 39.0, True), (41.0, 41.0, False), (39.0, 45.0, False), (35.0, 30.5, False)]
)
def test_a_grid_must_pay_as_planned(script: Any, tmp_path: Path, sparse: float, planned: float, ok: bool) -> None:
    module = script("sparsity")
    log = PointLog(tmp_path / "log", {})
    shared = {"actual_sparsity": 0.9, "rotations": 1, "products": 1}
    dense = {"measured_ms": 100.0, "predicted_ms": 100.0, "planner_ms": 60.0}
    log.append({"name": "net, diagonal, dense, 0", **dense, **shared})
    grid = {"measured_ms": sparse, "predicted_ms": planned, "planner_ms": 40.0}
    log.append({"name": "net, diagonal, grid, 0.9", **grid, **shared})
    found = module.grid(module.Bench(log, 1), "net", lambda: None, 2.5)
    assert found["ok"] is ok
    assert found["measured_speedup"] == pytest.approx(100 / sparse) and found["planner_speedup"] == 1.5


@pytest.mark.parametrize(("middle", "ok"), [(55.0, True), (80.0, False)])
def test_column_latency_must_be_linear(script: Any, tmp_path: Path, middle: float, ok: bool) -> None:
    module = script("sparsity")
    log = PointLog(tmp_path / "log", {})
    for name, weights, ms in (
        ("dense, 0", 100, 100.0),
        ("unstructured, 0.5", 50, middle),
        ("unstructured, 0.9", 10, 19.0),
    ):
        log.append({"name": f"net, column, {name}", "nonzeros": weights, "measured_ms": ms, "predicted_ms": ms})
    found = module.column(module.Bench(log, 1), "net", (0.0, 0.5, 0.9))
    assert found["ok"] is ok
    if ok:
        assert found["microseconds_per_weight"] == pytest.approx(900, rel=0.01)
        assert found["constant_share_of_dense"] == pytest.approx(0.1, abs=0.01)


def test_inputs_are_digits_in_the_size_of_the_network(script: Any) -> None:
    module = script("sparsity")
    assert module.inputs("digits-mlp", 3).shape == (3, 1, 8, 8)
    assert module.inputs("mnist-mlp", 512).shape == (512, 1, 28, 28)
