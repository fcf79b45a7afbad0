"""Groups and projections of a grid, and a DiaGrid that trains towards one before it cuts."""

from __future__ import annotations

import numpy as np
import pytest

from model_prep import Recipe, compress
from model_prep.data import load
from model_prep.grid.budget import Budget
from model_prep.grid.layer import GridLayer
from model_prep.grid.rows import RowLayer
from model_prep.grid.towards import budget_projections, grid_groupings

BABIES, GIANTS = 6, 4


def toy() -> GridLayer:
    """BABIES x GIANTS cells, two weights each; the first baby and the first giant are steps of zero."""
    b, g = np.meshgrid(np.arange(BABIES), np.arange(GIANTS), indexing="ij")
    lines = np.stack([b.ravel() - 1, np.where(g.ravel() > 0, g.ravel() + BABIES - 2, -1)], axis=1)
    cells = np.stack([np.arange(BABIES * GIANTS)] * 2, axis=1)
    ms = np.array([2.0] * (BABIES - 1) + [3.0] * (GIANTS - 1))
    return GridLayer(np.repeat(np.arange(BABIES * GIANTS), 2).reshape(-1, 2), cells, lines, ms, 0.5)


@pytest.fixture
def budget() -> Budget:
    rows = RowLayer((1, 2, 4), (1.0, 1.5, 2.5))
    return Budget({"grid": [toy()], "rows": [rows]}, 5.0)


@pytest.fixture
def energy() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"grid": rng.gamma(0.5, size=(BABIES * GIANTS, 2)), "rows": rng.gamma(0.5, size=(8, 16))}


def test_groups_are_lines_and_cells_with_their_costs(budget: Budget, energy: dict[str, np.ndarray]) -> None:
    chosen = budget.masks(energy, 25.0)
    groupings = grid_groupings(chosen)
    assert set(groupings) == {"grid"}, "rows of equal length have no group that shares a cost"
    cells, babies, giants = groupings["grid"]
    mean = np.mean([2.0] * (BABIES - 1) + [3.0] * (GIANTS - 1) + [0.5])
    assert np.array_equal(cells.labels, toy().classes) and np.allclose(cells.costs, 0.5 / mean)
    for grouping, number, cost in ((babies, BABIES, 2.0), (giants, GIANTS, 3.0)):
        assert grouping.groups == number
        assert sorted(grouping.costs) == pytest.approx([0.0] + [cost / mean] * (number - 1))
    # Weights that share a baby and a giant line are those of one cell.
    pairs = np.stack([babies.labels.ravel(), giants.labels.ravel()], axis=1)
    assert len(np.unique(pairs, axis=0)) == BABIES * GIANTS


def test_projections_hold_each_layer_to_its_part_of_the_budget(budget: Budget, energy: dict[str, np.ndarray]) -> None:
    chosen = budget.masks(energy, 25.0)
    fisher = {key: np.full(e.shape, 2.0) for key, e in energy.items()}
    projections = budget_projections(budget, fisher, chosen)
    rng = np.random.default_rng(1)
    for key, choice in chosen.items():
        project = projections[key]
        assert callable(project)
        values = rng.normal(size=energy[key].shape)
        once = project(values)
        assert np.array_equal(once[once != 0], values[once != 0])
        assert np.array_equal(project(once), once)
        if key == "grid":
            alive = np.isin(np.arange(BABIES * GIANTS), toy().classes[once != 0])
            assert toy().cost(alive) <= choice.ms + 1e-9
        else:
            assert len(set((once != 0).sum(axis=1).tolist())) == 1


def test_training_towards_a_grid_before_the_cut() -> None:
    short = {"epochs": 1, "learning_rate": 2e-3}
    step = {
        "method": "diagrid",
        "target_share": 0.7,
        "backend": "tenseal",
        "reweighting": short,
        "reweighting_rounds": 2,
        "admm": short,
        "admm_rounds": 2,
        "training": {"epochs": 4, "learning_rate": 2e-3},
    }
    recipe = {"name": "towards", "network": "digits-mlp", "teacher": {"epochs": 3}, "train_limit": 400, "steps": [step]}
    model = compress(None, Recipe.from_dict(recipe), load("digits"), quiet=True)
    report = model.metadata["steps"][-1]
    assert len(report["residuals"]) == 2
    assert report["planned_ms"] <= 1.03 * report["target_ms"]
