"""Training towards a grid before anything is cut: groups for the reweighted lasso, and projections for ADMM."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..cores.admm import Constraints
from ..cores.reweighted import Grouping
from ..cores.session import Projection
from .budget import Budget
from .layer import Choice, GridLayer
from .rows import RowLayer

__all__ = ["budget_projections", "grid_groupings"]

Floats = npt.NDArray[np.float64]


def grid_groupings(chosen: Mapping[str, Choice]) -> dict[str, list[Grouping]]:
    """Array name -> nested groups, each weighted by its measured cost over the mean cost: baby lines, giant lines, cells.

    Layers whose choice is a row length have no groups that share a cost and are left out. Weights on a step of zero
    cost no rotation, and their line group has weight 0.
    """
    return {key: _groupings(choice.grid) for key, choice in chosen.items() if choice.grid is not None}


def _groupings(grid: GridLayer) -> list[Grouping]:
    """A weight on several diagonals counts where its first one lies."""
    first = np.full(grid.class_count, -1, dtype=np.int64)
    first[grid.cells[::-1, 0]] = grid.cells[::-1, 1]
    cell_costs = np.full(grid.class_count, grid.cell_ms)
    mean = float(np.mean([*grid.line_ms, grid.cell_ms])) if len(grid.line_ms) else grid.cell_ms
    groupings = [Grouping(grid.classes, cell_costs / mean, "cells")]
    for side, name in ((0, "baby lines"), (1, "giant lines")):
        line = grid.lines[first, side]
        numbers, labels = np.unique(line, return_inverse=True)
        costs = np.where(numbers < 0, 0.0, grid.line_ms[np.maximum(numbers, 0)] if len(grid.line_ms) else 0.0)
        groupings.append(Grouping(labels[grid.classes].astype(np.int64), costs / mean, name))
    return groupings


def budget_projections(budget: Budget, fisher: Mapping[str, Floats], chosen: Mapping[str, Choice]) -> Constraints:
    """Array name -> projection onto the masks of that layer which cost no more than what was chosen for it.

    The split of the budget among the layers is that of `chosen`; which lines and cells stay is found anew at each projection.
    """
    return {key: _projection(budget, key, fisher[key], choice) for key, choice in chosen.items()}


def _projection(budget: Budget, key: str, fisher: Floats, choice: Choice) -> Projection:
    option = choice.grid or next(o for o in budget.options[key] if isinstance(o, RowLayer))

    def project(values: Floats) -> Floats:
        best: Choice | None = None
        for path in option.paths(fisher * values**2):
            while path.ms > choice.ms + 1e-9 and np.isfinite(path.ratio):
                path.step()
            if path.ms <= choice.ms + 1e-9 and (best is None or path.choice.lost < best.lost):
                best = path.choice
        assert best is not None  # the choice itself is within its own cost
        return values * best.keep

    return project
