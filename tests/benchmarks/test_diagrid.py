"""The benchmark of DiaGrid on a small recipe: a dense twin, both measured, trainings kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_prep import Recipe
from secateur.artifacts import find_recipe

RECIPE = """
name = "small"
network = "digits-mlp"
train_limit = 500
[teacher]
epochs = 4
learning_rate = 5e-3
[[steps]]
method = "diagrid"
target_share = 0.7
backend = "tenseal"
[steps.training]
epochs = 3
learning_rate = 2e-3
"""


def test_a_recipe_is_measured_against_its_dense_twin(script: Any, said: Any, tmp_path: Path) -> None:
    path, states = tmp_path / "small.toml", tmp_path / "states"
    path.write_text(RECIPE)
    arguments = [str(path), "--runs", "3", "--backend", "tenseal", "--states", str(states)]
    (record,) = said(script("diagrid"), *arguments)["recipes"]
    (row,) = record["backends"]
    assert set(record["accuracy"]) == set(row["measured_ms"]) == {"dense", "diagrid"}
    assert row["predicted_ms"]["diagrid"] <= 0.75 * row["predicted_ms"]["dense"]
    assert row["ratio"] == pytest.approx(row["measured_ms"]["dense"] / row["measured_ms"]["diagrid"])
    assert set(row["prediction_error"]) == {"dense", "diagrid"}
    assert all(abs(wrong) < 1 for wrong in row["prediction_error"].values())
    assert row["argmax_same"] == 3 and 0 < row["largest_error"] <= 1.5 * row["error_bound"]
    kept = {file.name: file.stat().st_mtime_ns for file in states.iterdir()}
    assert len(kept) == 3, "the teacher and the quadratics once for both networks, and DiaGrid"
    again = said(script("diagrid"), *arguments)["recipes"][0]
    assert again["accuracy"] == record["accuracy"]
    assert {file.name: file.stat().st_mtime_ns for file in states.iterdir()} == kept, "nothing was trained again"


def test_a_dense_twin_is_all_but_diagrid(script: Any) -> None:
    recipe = Recipe.load(find_recipe("mnist-mlp-diagrid"))
    twin = script("diagrid").dense_twin(recipe)
    assert [step.card.name for step in recipe.steps] == ["quadratics", "diagrid"]
    assert twin.steps == recipe.steps[:1] and twin.teacher == recipe.teacher
