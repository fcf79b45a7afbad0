"""The benchmark of all methods: its grid gives every method the same training, its log resumes, its summary can fail."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from model_prep.settings import Training
from secateur.sweep_run import COLUMN, DIAGONAL


@pytest.fixture
def modules(script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """methods.py with the files that it imports from its own directory."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return script("methods")


@pytest.fixture
def grid(modules: Any) -> Any:
    return importlib.import_module("methods_grid")


@pytest.fixture
def report(modules: Any) -> Any:
    return importlib.import_module("methods_report")


@pytest.fixture
def equal(modules: Any) -> Any:
    return importlib.import_module("methods_equal")


def runs_of(settings: Any) -> list[Training]:
    """All training settings inside a method's."""
    if isinstance(settings, Training):
        return [settings]
    return [t for v in vars(settings).values() if hasattr(v, "__dataclass_fields__") for t in runs_of(v)]


def test_every_method_trains_alike(grid: Any) -> None:
    found = list(grid.candidates(tuple(grid.BUDGETS), tuple(grid.ROWS)))
    assert len({c.digest for c in found}) == len(found)
    for c in found:
        budget = grid.BUDGETS[c.network]
        assert c.recipe.teacher.epochs == budget.teacher and c.recipe.seed in budget.seeds
        assert [t.epochs for t in runs_of(c.recipe.steps[0])] == [budget.quadratics]
        used = [t for t in runs_of(c.recipe.steps[1]) if t.epochs]
        assert sum(t.epochs for t in used) <= budget.epochs, c.recipe.name
        rates = {(t.learning_rate, t.batch_size) for t in used}
        assert rates == {(budget.learning_rate, budget.batch_size)}, c.recipe.name
    for network in grid.BUDGETS:
        assert grid.DENSE in {c.row for c in found if c.network == network}


def test_every_registered_method_is_compared(grid: Any) -> None:
    assert grid.missing()["not compared"] == []


def costs(ms: float, batch: int = 1, **changes: Any) -> dict[str, Any]:
    known = {
        "fits": True,
        "batch": batch,
        "levels": 2,
        "rotations": 1,
        "products": 1,
        "key_bytes": 5,
        "upload_bytes": 8.0,
    }
    return known | {"predicted_ms": ms, "calibrated_ms": ms, "measured_ms": ms} | changes


def point(row: str, accuracy: float, diagonal: float, column: float, **changes: Any) -> dict[str, Any]:
    return {
        "network": "net", "row": row, "setting": "s", "seed": 0, "packing": DIAGONAL, "made": True, "accuracy": accuracy,
        "nonzeros": 10, "flops": 10, "epochs": 60, "wall_seconds": 1.0,
        "packings": {DIAGONAL: costs(diagonal), COLUMN: costs(column, 4096)},
    } | changes  # fmt: skip


def test_the_summary_states_losses(report: Any) -> None:
    points = [
        point("dense", 0.99, 60.0, 4096.0, flops=40),
        point("dense", 0.97, 60.0, 4096.0, flops=40, seed=1),
        point("slow", 0.98, 61.0, 4096.0, flops=30),
        point("lossy", 0.9, 20.0, 4096.0, flops=35),
        point("column", 0.975, 59.0, 2048.0, flops=10, packing=COLUMN),
        {"network": "net", "row": "broken", "setting": "s", "seed": 0, "made": False, "why": "cannot"},
    ]
    found = report.summary(points)
    rows = {row["method"]: row for row in found["rows"]}
    assert rows["dense"]["accuracy"] == pytest.approx(0.98) and rows["dense"]["accuracies"] == [0.99, 0.97]
    assert rows["lossy"]["loss"] == pytest.approx(8.0)
    assert rows["column"]["measured_ms"] == 0.5, "a query's share of a run"
    verdicts = {row["method"]: row["verdicts"] for row in found["losses"]}
    assert verdicts == {"slow": ["no faster than dense"], "lossy": ["loses 8.0 points"]}
    assert [p["row"] for p in found["failed"]] == ["broken"]
    best = found["correlations"]["best packing"]
    assert best["n"] == 5 and best["predicted_ms"] == pytest.approx(1.0) and best["flops"] < 1


def test_a_packing_that_does_not_fit_gives_way(report: Any) -> None:
    left = {"fits": False, "why": "too many features"}
    one = point("column", 0.9, 30.0, 1.0, packing=COLUMN)
    one["packings"][COLUMN] = left
    found = report.summary([one])
    assert found["rows"][0]["packing"] == DIAGONAL and found["rows"][0]["measured_ms"] == 30.0
    assert found["left_out"] == [{"network": "net", "row": "column", "packing": COLUMN, "why": "too many features"}]


def ours(accuracy: float, ms: float, setting: str) -> dict[str, Any]:
    return point("diagrid", accuracy, ms, 4096.0, setting=setting)


def test_times_at_equal_accuracy_lie_between_diagrids_networks(equal: Any, capsys: Any) -> None:
    grid = [ours(0.98, 40.0, "a"), ours(0.96, 20.0, "b"), ours(0.95, 25.0, "beaten in both"), ours(0.9, 10.0, "c")]
    others = [
        point("between", 0.97, 60.0, 4096.0),
        point("close", 0.98, 44.0, 4096.0),
        point("below", 0.8, 12.0, 4096.0),
        point("better", 0.99, 100.0, 4096.0),
        point("seeds", 0.95, 30.0, 4096.0),
        point("seeds", 0.97, 50.0, 4096.0, seed=1),
    ]
    others[0]["packings"][DIAGONAL]["ungathered_ms"] = 90.0
    others[1]["packings"][DIAGONAL]["ungathered_ms"] = None  # only gathered does it fit a ring
    found = {row["method"]: row for row in equal.at_equal_accuracy([*grid, *others])}
    by_price = {name: row["times"]["by price"] for name, row in found.items()}
    assert by_price == pytest.approx({"between": 2.0, "close": 1.1, "below": 1.2, "better": None, "seeds": 2.0})
    assert [name for name, row in found.items() if row["at_least"]] == ["below"]
    assert found["between"]["times"]["not gathered"] == pytest.approx(3.0)
    assert found["close"]["times"]["not gathered"] is None
    equal.render_equal(list(found.values()))
    out = capsys.readouterr().out
    assert "by price: met at 2 points, missed at 1, 2 cannot be compared" in out and "> 1.20" in out


def test_networks_that_diagrid_was_not_run_on_are_not_compared(equal: Any) -> None:
    assert equal.at_equal_accuracy([point("alone", 0.9, 10.0, 10.0)]) == []


def test_a_picture_and_a_table_are_drawn(report: Any, tmp_path: Path, capsys: Any) -> None:
    points = [point("dense", 0.99, 60.0, 4096.0), point("lossy", 0.9, 20.0, 2048.0)]
    path = tmp_path / "plot.png"
    record = report.summary(points) | {
        "machine": "here", "backend": "tenseal", "runs": 1, "revision": "r", "plot": report.write_plot(points, path),
        "budgets": {"net": {"epochs": 60, "teacher": 60, "quadratics": 30, "seeds": (0,)}},
        "not registered": ["later"], "not compared": [],
    }  # fmt: skip
    assert path.read_bytes().startswith(b"\x89PNG")
    report.render(record)
    out = capsys.readouterr().out
    for text in ("LOSS net, lossy", "rank correlation", "not registered: later", "60 epochs for every method"):
        assert text in out


def test_points_are_made_once_per_recipe_and_code(
    modules: Any, grid: Any, said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = grid.Budget(teacher=2, quadratics=1, epochs=2, rounds=1, learning_rate=4e-3, batch_size=64, seeds=(0,))
    monkeypatch.setitem(grid.BUDGETS, "digits-mlp", tiny)
    made: list[str] = []
    inside = modules.Bench._made
    monkeypatch.setattr(modules, "PACKINGS", (DIAGONAL,))
    monkeypatch.setattr(modules.Bench, "_made", lambda self, c: made.append(c.row) or with_column(inside(self, c)))
    monkeypatch.setattr(modules, "identity", lambda: "a" * 64)
    arguments = ["--quick", "--method", "dense", "--log", tmp_path / "log.jsonl", "--runs", 1]
    first = said(modules, *arguments)
    assert made == ["dense"] and first["asked"] == 1
    (one,) = first["points"]
    cost = one["packings"][DIAGONAL]
    assert cost["counters_equal"] and cost["measured_ms"] > 0 and cost["ungathered_ms"] >= cost["predicted_ms"]
    assert one["epochs"] == 2 and one["nonzeros"] == one["flops"] == 64 * 64 * 2 + 640
    second = said(modules, *arguments)
    assert made == ["dense"] and second["points"] == json.loads(json.dumps(first["points"]))
    monkeypatch.setattr(modules, "identity", lambda: "b" * 64)
    assert said(modules, *arguments, "--any-code")["points"] == second["points"] and made == ["dense"]
    said(modules, *arguments)
    assert made == ["dense", "dense"]
    assert Path(second["plot"]).exists()


def with_column(record: dict[str, Any]) -> dict[str, Any]:
    """A point whose column packing was left out, to save the test its time."""
    return {**record, "packings": {COLUMN: {"fits": False, "why": "not asked"}, **record["packings"]}}
