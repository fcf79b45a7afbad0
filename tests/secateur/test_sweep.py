"""`secateur sweep`: the points, the files, resuming, and that measurement and prediction see the same plans."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_runtime.cost import load_default
from he_runtime.model import CompressedModel, InputSpec, Node, OutputSpec
from he_runtime.reference import calibrate
from secateur.sweep_chart import Series, line_chart
from secateur.sweep_log import PointLog
from secateur.sweep_page import sweep_page
from secateur.sweep_run import Point, agreement, points_of, spearman

PACKINGS = ("diagonal", "column")
PATTERNS = ("unstructured", "diagonals", "grid", "permuted-grid")
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped table as a file: prices that no machine's noise moves."""
    return load_default("tenseal").save(tmp_path_factory.mktemp("prices") / "table.json")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32-32-8 with a square between, as a model directory: every packing of it is planned in a moment."""
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.normal(size=(32, 32)) / 6,
        "v": rng.normal(size=(8, 32)) / 6,
        "one": np.ones(()),
        "zero": np.zeros(()),
    }
    nodes = (
        Node("fc1", "dense", ("x",), (32,), {}, {"weight": "w"}),
        Node("act", "quadratic", ("fc1",), (32,), {}, {"a": "one", "b": "zero", "c": "zero"}),
        Node("fc2", "dense", ("act",), (8,), {}, {"weight": "v"}),
    )
    model = CompressedModel("small", InputSpec("x", (32,)), OutputSpec("fc2"), nodes, arrays)
    return calibrate(model, rng.uniform(-1, 1, size=(64, 32))).save(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="module")
def swept(ask: Ask, small: Path, prices: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A predicted sweep of all patterns in both packings."""
    directory = tmp_path_factory.mktemp("sweep")
    arguments = ["--sparsity", 0.0, "--sparsity", 0.8, "--predict-only", "--table", prices]
    return directory, ask("sweep", small, "--output", directory, *arguments)


def test_every_pattern_and_packing_is_there(swept: tuple[Path, dict[str, Any]]) -> None:
    _, record = swept
    found = {(p["packing"], p["pattern"], p["sparsity"]) for p in record["points"]}
    assert found == {(a, b, s) for a in PACKINGS for b, s in (("dense", 0.0), *((b, 0.8) for b in PATTERNS))}
    assert all(p["fits"] for p in record["points"])
    assert record["agreement"]["n"] == 0, "nothing was measured"
    assert {p["nonzeros"] for p in record["points"] if p["sparsity"]} == {256}, "equal sparsity"


def test_structure_pays_in_diagonal_packing_and_count_in_column_packing(swept: tuple[Path, dict[str, Any]]) -> None:
    _, record = swept
    points = {(p["packing"], p["pattern"]): p for p in record["points"]}
    cost = {key: p["predicted_ms"] for key, p in points.items()}
    assert cost["diagonal", "unstructured"] == pytest.approx(cost["diagonal", "dense"], rel=0.05)
    assert cost["diagonal", "dense"] > cost["diagonal", "diagonals"] > cost["diagonal", "grid"]
    assert cost["diagonal", "permuted-grid"] == pytest.approx(cost["diagonal", "grid"])
    column = [cost["column", pattern] for pattern in PATTERNS]
    assert column == pytest.approx([column[0]] * 4, rel=0.02)
    dense, grid = (points["column", p]["products"] for p in ("dense", "grid"))
    assert 0.98 * 1280 <= dense <= 1280 and 0.98 * 256 <= grid <= 256  # integers of one step are added, not multiplied
    assert all(p["rotations"] == 0 and p["batch"] == p["N"] // 2 for (a, _), p in points.items() if a == "column")


def test_the_files_hold_the_record(swept: tuple[Path, dict[str, Any]]) -> None:
    directory, record = swept
    assert {Path(f).name for f in record["files"].values()} == {path.name for path in directory.iterdir()}
    stored = json.loads((directory / "sweep.json").read_text())
    assert stored["points"] == record["points"]
    with (directory / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["predicted_ms"]) for row in rows] == [p["predicted_ms"] for p in record["points"]]
    assert (directory / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_is_self_contained(swept: tuple[Path, dict[str, Any]]) -> None:
    page = (swept[0] / "sweep.html").read_text()
    assert not re.search(r"(?:src|href)=|url\(|@import|<script", page)
    assert page.count("stroke-dasharray") == 2 * len(PATTERNS), "a predicted curve per pattern and packing"
    assert page.count("<tr>") == 1 + 2 * (1 + len(PATTERNS))
    for text in ("small", "random diagonals", "queries a run", "one query a run"):
        assert text in page


def test_names_are_escaped_on_the_page(swept: tuple[Path, dict[str, Any]]) -> None:
    page = sweep_page(swept[1] | {"network": "<script>alert(1)</script>"})
    assert "<script" not in page and "&lt;script&gt;" in page


def test_a_measured_point_stands_beside_its_prediction(ask: Ask, small: Path, tmp_path: Path) -> None:
    arguments = ["--sparsity", 0.5, "--pattern", "grid", "--packing", "diagonal", "--seconds", 0.3, "--runs", 1]
    # One thread by its processor time: the tests keep every core busy.
    record = ask("sweep", small, "--output", tmp_path, "--backend", "tenseal", *arguments)
    (point,) = record["points"]
    assert point["counters_equal"] is True
    assert point["runs"] == 1
    assert point["ratio"] == pytest.approx(point["predicted_ms"] / point["measured_ms"])
    assert 0.2 < point["ratio"] < 5
    assert record["agreement"]["n"] == 1
    assert (tmp_path / "sweep.html").read_text().count("<circle") == 3, "legend, latency, energy"


def test_what_does_not_fit_the_memory_is_priced_and_says_why(
    ask: Ask, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.sweep_run.os.sysconf", lambda name: 1)
    arguments = ["--sparsity", 0.5, "--pattern", "grid", "--packing", "diagonal", "--seconds", 0.3, "--runs", 1]
    (point,) = ask("sweep", small, "--output", tmp_path, *arguments)["points"]
    assert point["fits"] and point["predicted_ms"] > 0
    assert "measured_ms" not in point and "free memory" in point["why"]


def test_stopping_a_sweep_says_how_to_go_on(
    cli: Any, small: Path, prices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("secateur.sweep_run.Timer.record", stopped)
    said = cli("sweep", small, "--output", tmp_path, "--table", prices, "--predict-only")
    assert said.code != 0
    assert "stopped with 0 points done" in said.err and "Traceback" not in said.err


def test_an_interrupted_sweep_goes_on(ask: Ask, refused: Any, small: Path, prices: Path, tmp_path: Path) -> None:
    """Finished points are not planned again, a line cut off by a kill is, and other settings are refused."""
    arguments = ["sweep", small, "--output", tmp_path, "--packing", "diagonal", "--table", prices, "--predict-only"]
    ask(*arguments, "--pattern", "grid", "--sparsity", 0.5)
    log = tmp_path / "points.jsonl"
    first = json.loads(log.read_text().splitlines()[1])
    marked = first | {"predicted_ms": 123.0}
    log.write_text(log.read_text().replace(json.dumps(first), json.dumps(marked)) + '{"packing": "diag')
    both = ask(*arguments, "--pattern", "grid", "--pattern", "diagonals", "--sparsity", 0.5)
    assert [p["pattern"] for p in both["points"]] == ["grid", "diagonals"]
    assert both["points"][0]["predicted_ms"] == 123.0, "read, not computed again"
    assert len(log.read_text().splitlines()) == 3
    assert "made with seed 0, not 1" in refused(*arguments, "--seed", 1)
    again = ask(*arguments, "--seed", 1, "--restart", "--pattern", "grid", "--sparsity", 0.5)
    assert again["points"][0]["predicted_ms"] != 123.0


def test_what_cannot_be_swept_is_refused(refused: Any, tmp_path: Path) -> None:
    assert "need a model directory or one of digits-mlp" in refused("sweep", "resnet")
    assert "packing 'rows': need one of diagonal, column" in refused("sweep", "digits-mlp", "--packing", "rows")
    assert "pattern 'stripes'" in refused("sweep", "digits-mlp", "--pattern", "stripes")
    assert "from 0 to 0.99" in refused("sweep", "digits-mlp", "--sparsity", 1.0)
    assert not list(tmp_path.iterdir())


def test_a_reference_network_is_swept(ask: Ask, prices: Path) -> None:
    arguments = ["--packing", "diagonal", "--sparsity", 0.98, "--pattern", "diagonals"]
    record = ask("sweep", "digits-mlp", *arguments, "--table", prices, "--predict-only")
    assert (record["network"], record["weights"]) == ("digits-mlp", "random")
    assert Path("sweep-digits-mlp/sweep.csv").exists()


def test_without_matplotlib_only_the_picture_is_missing(
    cli: Any, small: Path, prices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("no module", name="matplotlib")

    monkeypatch.setattr("secateur.sweep.write_png", missing)
    arguments = ["--packing", "diagonal", "--sparsity", 0.5, "--pattern", "grid", "--table", prices, "--predict-only"]
    said = cli("sweep", small, "--output", tmp_path, *arguments)
    assert said.code == 0
    assert "pip install 'secateur[plot]'" in said.err
    assert "sweep.html" in said.out and "sweep.png" not in said.out
    assert max(map(len, said.out.splitlines())) <= max(80, len(str(tmp_path)) + 30)


def test_points_share_the_dense_network() -> None:
    points = points_of(["diagonal"], PATTERNS, [0.5, 0.0, 0.5])
    assert points[0] == Point("diagonal", "dense", 0.0)
    assert [p.pattern for p in points[1:]] == list(PATTERNS)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["[]"], "line 1 is no JSON object"),
        (['{"settings": {"a": 1}}', "nonsense"], "line 2 is no JSON object"),
        (['{"other": 1}'], "does not begin with settings"),
        (['{"settings": {"a": 2}}'], "made with a 2, not 1"),
    ],
)
def test_a_foreign_log_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    from he_runtime.errors import InputError

    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=message):
        PointLog(path, {"a": 1})


def test_agreement() -> None:
    records = [{"predicted_ms": p, "measured_ms": m} for p, m in ((10, 10), (22, 20), (27, 30))]
    found = agreement([*records, {"predicted_ms": 5.0}])
    assert found["n"] == 3
    assert found["mape"] == pytest.approx((0 + 0.1 + 0.1) / 3)
    assert found["spearman"] == pytest.approx(1.0)
    assert spearman([(1, 3), (2, 2), (3, 1)]) == pytest.approx(-1.0)
    assert spearman([(1, 1), (1, 2)]) is None
    assert agreement([]) == {"n": 0, "mape": None, "spearman": None}


def test_a_chart_of_nothing_is_a_chart() -> None:
    assert line_chart([Series("grid", (), ())], "ms").endswith("</svg>")
