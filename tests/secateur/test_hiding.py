"""`--disclosure shape`: what it plans and writes, and that `plan` and `estimate` show its price."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_runtime import Plan
from he_runtime.plan.counts import leaf_totals
from tests.secateur.test_plan_page import Ask, network


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only three diagonals of the first layer are left."""
    model = network("pruned")
    rows, columns = np.indices((32, 64))
    weight = model.arrays["w"] * ((columns - rows) % 32 < 3)
    return model.with_(arrays={**model.arrays, "w": weight}).save(tmp_path_factory.mktemp("pruned") / "model")


def test_the_price_of_hiding_is_shown(ask: Ask, pruned: Path, tmp_path: Path) -> None:
    record = ask("plan", pruned, "--disclosure", "shape", "--magnitude", 64, "--output", tmp_path / "plan")
    shape, structure = record["hiding"]["shape"], record["hiding"]["structure"]
    assert shape["products"] > structure["products"] and shape["keys"] >= structure["keys"]
    assert record["disclosure"] == "shape" and record["cost"]["latency_ms"] == shape["latency_ms"]
    plan = Plan.load(tmp_path / "plan")
    assert plan.disclosure == "shape"
    assert json.loads((tmp_path / "plan" / "dense_counts.json").read_text()) == leaf_totals(plan.counts)
    estimate = ask("estimate", pruned, "--disclosure", "shape", "--magnitude", 64)
    assert estimate["disclosure"] == "shape" and estimate["latency_ms"] == shape["latency_ms"]
    assert ask("estimate", pruned)["disclosure"] == "structure"


def test_the_table_of_prices_is_for_people(cli: Any, pruned: Path) -> None:
    said = cli("plan", pruned, "--disclosure", "shape")
    assert said.code == 0 and "what it costs" in said.out and "shape only" in said.out
    assert "what it costs" not in cli("plan", pruned).out


@pytest.mark.parametrize(
    "options",
    [
        ("--disclosure", "nothing"),
        ("--magnitude", 8),
        ("--disclosure", "shape", "--magnitude", -1),
        ("--disclosure", "shape", "--batch", 4),
        ("--primes-per-level", 4),
        ("--primes-per-level", 2, "--batch", 4),
    ],
)
def test_options_without_a_meaning_are_refused(cli: Any, pruned: Path, options: tuple[Any, ...]) -> None:
    said = cli("plan", pruned, *options)
    assert said.code != 0 and "cannot" in said.err


def test_a_plan_for_releases(ask: Ask, pruned: Path) -> None:
    record = ask("plan", pruned, "--primes-per-level", 2, "--degree", 16384, "--max-error", 1e-4)
    assert record["error_bound"] < 1e-4 and len(record["prime_bits"]) == 4
