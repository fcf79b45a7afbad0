"""`secateur plan --html` and `--batch`: what the page and the table say is what the plan and its price hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_runtime import CompressedModel, compile, price
from he_runtime.backends import default_backend
from he_runtime.batching import plan_batch
from he_runtime.cost import load_default
from he_runtime.model import InputSpec, Node, OutputSpec
from he_runtime.reference import calibrate
from secateur.plan_page import plan_page

Ask = Callable[..., dict[str, Any]]


def network(name: str = "small") -> CompressedModel:
    """64-32-8 with a square between."""
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.normal(size=(32, 64)) / 8,
        "v": rng.normal(size=(8, 32)) / 6,
        "one": np.ones(()),
        "zero": np.zeros(()),
    }
    nodes = (
        Node("fc1", "dense", ("x",), (32,), {}, {"weight": "w"}),
        Node("act<1>", "quadratic", ("fc1",), (32,), {}, {"a": "one", "b": "zero", "c": "zero"}),
        Node("fc2", "dense", ("act<1>",), (8,), {}, {"weight": "v"}),
    )
    model = CompressedModel(name, InputSpec("x", (64,)), OutputSpec("fc2"), nodes, arrays)
    return calibrate(model, rng.uniform(-1, 1, size=(64, 64)))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network().save(tmp_path_factory.mktemp("small") / "model")


def cells(page: str, layer: str) -> list[str]:
    """The row of a layer in the table of layers."""
    row = re.search(rf'<tr><td class="text">{layer}</td>(?:(?!</tr>).)*</tr>', page.split("<h2>Layers</h2>")[1])
    assert row is not None
    return re.findall(r"<td[^>]*>(.*?)</td>", row[0])


def test_the_page_says_what_the_plan_holds(ask: Ask, small: Path, tmp_path: Path) -> None:
    record = ask("plan", small, "--html", tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text()
    plan = compile(CompressedModel.load(small))
    report = price(plan, load_default(default_backend()))
    assert record["plan_digest"] == plan.digest
    assert not re.search(r"(?:src|href)=|url\(|@import|<script", page), "self-contained"
    for heading in ("What it costs", "Cost by layer", "Levels", "Layers", f"Keys ({record['keys']})", "Memory"):
        assert f"<h2>{heading}</h2>" in page
    for layer in report.layers:
        row = cells(page, layer.name.replace("<", "&lt;").replace(">", "&gt;"))
        rotations, babies, giants, folds, products = (int(x) for x in row[4:9])
        assert rotations == babies + giants + folds == layer.rotations
        assert products == layer.products
        assert row[9] == f"{layer.ms:,.1f}"
    assert "act<1>" not in page, "names are escaped"
    assert f"<dt>rotations</dt><dd>{report.rotations}</dd>" in page
    assert f"{report.peak_bytes / 1e6:,.1f} MB" in page


def test_the_staircase_falls_with_the_levels() -> None:
    plan = compile(network())
    page = plan_page(plan, price(plan, load_default("tenseal")))
    (points,) = re.findall(r'<polyline points="([^"]+)"', page)
    heights = [float(pair.split(",")[1]) for pair in points.split()]
    assert heights == sorted(heights), "down is a larger y"
    assert len(set(heights)) == 1 + plan.values[plan.inputs[0].values[0]].level


def test_every_key_is_listed_with_its_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.plan_page._SHOWN_KEYS", 4)
    plan = compile(network())
    page = plan_page(plan, price(plan, load_default("tenseal"))).split("<h2>Keys")[1].split("<h2>")[0]
    rows = re.findall(r'<tr><td class="text">(.*?)</td><td class="text">(.*?)</td><td>(\d+)</td>', page)
    assert len(rows) == len(plan.keys.requests)
    assert ("relinearize", "act&lt;1&gt; 1", "1") in rows
    turns = sum(int(times) for what, _, times in rows if what.startswith("rotate by"))
    assert turns == sum(n for (leaf, _), n in plan.counts.items() if leaf == "rotate")
    assert "<details>" in page, "the rarer keys are folded away"


def test_batches_are_weighed(ask: Ask, cli: Any, small: Path, tmp_path: Path) -> None:
    record = ask("plan", small, "--batch", 64, "--output", tmp_path / "plan", "--html", tmp_path / "plan.html")
    found = plan_batch(CompressedModel.load(small), 64)
    batching = record["batching"]
    assert batching["samples"] == 64
    assert batching["batch"] == found.chosen.batch > 1
    assert batching["crossover"] == found.crossover
    (chosen,) = (option for option in batching["options"] if option["chosen"])
    assert chosen["total_ms"] == min(o["total_ms"] for o in batching["options"] if o["planned"])
    single = batching["options"][0]
    assert (single["batch"], single["runs"], single["planned"]) == (1, 64, True)
    assert batching["crossover"] * single["run_ms"] > chosen["run_ms"] >= (batching["crossover"] - 1) * single["run_ms"]
    assert f"for {chosen['batch']} queries a run" in (tmp_path / "plan.html").read_text()
    again = ask("plan", tmp_path / "plan")
    assert again["plan_digest"] == record["plan_digest"]

    said = cli("plan", small, "--batch", 64)
    assert said.code == 0
    assert f"Batches of {chosen['batch']} beat single queries from {batching['crossover']} queries on." in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_one_query_is_no_batch(ask: Ask, small: Path) -> None:
    batching = ask("plan", small, "--batch", 1)["batching"]
    assert (batching["batch"], batching["crossover"]) == (1, None)
    assert len(batching["options"]) == 1


def test_a_plan_is_not_batched_again(ask: Ask, refused: Any, small: Path, tmp_path: Path) -> None:
    ask("plan", small, "--output", tmp_path / "plan")
    assert "it is a plan" in refused("plan", tmp_path / "plan", "--batch", 8)
    assert "cannot read the cost table" in refused("plan", small, "--table", tmp_path / "none.json")
