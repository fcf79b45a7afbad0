"""One layer as a grid: cells (products) on baby lines and giant lines (rotations), each with what it costs.

A diagonal is applied as a baby step on an input ciphertext and a giant step on an output ciphertext. The steps are paid
once per (ciphertext, step), here a *line*, and each diagonal once more as a product: a *cell*, where its lines cross. So a
layer is cheap when what it keeps lies on few lines, and only whole lines save rotations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from he_runtime.lower.costs import Costs
from he_runtime.plan import Kind

from ..packing.packing import PackedWeights

__all__ = ["Choice", "GridLayer", "GridPath", "grid_layer", "loss_of"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """Weights to keep (the array's shape), their cost in milliseconds, and what is lost: -log of the kept share of saliency.

    What a network can still do is taken to be the product of its layers' kept shares: no layer can be emptied for the sake
    of another, whatever sums of saliencies say, which hold for small changes only. `grid` is none where rows were chosen.
    """

    keep: Bools
    ms: float
    lost: float
    grid: GridLayer | None = None


@dataclass(frozen=True)
class GridLayer:
    """The cells and lines of one weight array when nothing is pruned.

    `classes` numbers the weights by their set of cells; `cells` has a row (class, cell) for each cell that a class
    occupies; `lines` has the baby line and the giant line of each cell, -1 for a step of zero, which costs nothing. What
    the layer costs whatever is left of it is `fold_ms`.
    """

    classes: Ints
    cells: Ints
    lines: Ints
    line_ms: Floats
    cell_ms: float
    fold_ms: float = 0.0

    ways: ClassVar[int] = 1  # paths

    @property
    def class_count(self) -> int:
        return int(self.classes.max()) + 1

    @property
    def least_ms(self) -> float:
        """Of the cheapest layer that still has a weight."""
        return float(self._alone_ms.min())

    @cached_property
    def _alone_ms(self) -> Floats:
        """What each class costs where no other is left."""
        return np.array([self.cost(np.arange(self.class_count) == c) for c in range(self.class_count)])

    def cheapest(self, energy: Floats) -> Choice:
        """The layer of `least_ms`: of the classes that cost no more, the one with most saliency."""
        sums = np.bincount(self.classes.ravel(), weights=energy.ravel(), minlength=self.class_count)
        left = int(np.where(self._alone_ms <= self.least_ms * (1 + 1e-9), sums, -1.0).argmax())
        return Choice(self.classes == left, self.least_ms, loss_of(float(sums[left]), float(sums.sum())), self)

    def cost(self, alive: Bools) -> float:
        """Milliseconds of products, rotations and folds, were these classes (classes,) kept."""
        cells = np.unique(self.cells[alive[self.cells[:, 0]], 1])
        lines = np.unique(self.lines[cells])
        return float(self.fold_ms + self.cell_ms * len(cells) + self.line_ms[lines[lines >= 0]].sum())

    @property
    def whole_ms(self) -> float:
        return self.cost(np.ones(self.class_count, dtype=np.bool_))

    def paths(self, energy: Floats) -> list[GridPath]:
        """The way down from the whole layer; `energy` (the array's shape) is the saliency of each weight."""
        return [GridPath(self, energy)]


class GridPath:
    """A layer on its way down: lines and single cells go, whichever loses least saliency per millisecond saved.

    Costs fall faster than in proportion when lines go with all that is left on them, so no fixed price of a millisecond
    leads to layers of medium size: one that is worth thinning is worth emptying. Steps taken in turn do.
    """

    def __init__(self, layer: GridLayer, energy: Floats) -> None:
        self._layer = layer
        flat = layer.classes.ravel()
        self._sums: Floats = np.bincount(flat, weights=energy.ravel(), minlength=layer.class_count).astype(np.float64)
        self._alive = np.ones(layer.class_count, dtype=np.bool_)
        self._strongest = int(self._sums.argmax())
        lines = layer.lines[layer.cells[:, 1]]
        on = np.concatenate([np.stack([layer.cells[:, 0], lines[:, side]], axis=1) for side in (0, 1)])
        self._on = np.unique(on[on[:, 1] >= 0], axis=0)  # (class, line)
        self._held = np.bincount(layer.cells[:, 0], minlength=layer.class_count)  # cells of each class
        self._next = self._cheapest()

    @property
    def ms(self) -> float:
        return self._layer.cost(self._alive)

    @property
    def ratio(self) -> float:
        """What the next step loses per millisecond; infinite when only the strongest class is left."""
        return self._next[0]

    def step(self) -> None:
        self._alive[self._next[1]] = False
        self._next = self._cheapest()

    @property
    def choice(self) -> Choice:
        keep = np.asarray(self._alive[self._layer.classes])
        lost = loss_of(float(self._sums[self._alive].sum()), float(self._sums.sum()))
        return Choice(keep, self.ms, lost, self._layer)

    def _cheapest(self) -> tuple[float, Ints]:
        """The step that loses least per millisecond: the classes of a line, or one class."""
        classes = np.flatnonzero(self._alive & (np.arange(len(self._alive)) != self._strongest))
        if not len(classes):
            return np.inf, classes
        kept = float(self._sums[self._alive].sum())
        single = _losses(self._sums[classes], kept) / (self._layer.cell_ms * self._held[classes])
        best = int(single.argmin())
        found = float(single[best]), classes[best : best + 1]
        on = self._on[self._alive[self._on[:, 0]]]
        if not len(on):
            return found
        count = len(self._layer.line_ms)
        saved = self._layer.line_ms + self._layer.cell_ms * np.bincount(
            on[:, 1], weights=self._held[on[:, 0]], minlength=count
        )
        ratio = (
            _losses(np.bincount(on[:, 1], weights=self._sums[on[:, 0]], minlength=count).astype(np.float64), kept)
            / saved
        )
        ratio[np.bincount(on[:, 1], minlength=count) == 0] = np.inf
        ratio[on[on[:, 0] == self._strongest, 1]] = np.inf
        line = int(ratio.argmin())
        return (float(ratio[line]), np.asarray(on[on[:, 1] == line, 0])) if ratio[line] < found[0] else found


def loss_of(kept: float, total: float) -> float:
    """-log of the kept share; of nothing, nothing is lost."""
    return -float(np.log(max(kept, 1e-300) / total)) if total > 0 else 0.0


def _losses(going: Floats, kept: float) -> Floats:
    """What each step would lose: -log of the share of what is kept now that would stay."""
    if kept <= 0:
        return np.zeros(len(going))
    return np.asarray(-np.log(np.maximum(1 - going / kept, 1e-12)), dtype=np.float64)


def grid_layer(packed: PackedWeights, costs: Costs) -> GridLayer:
    """The grid of a packed layer at the prices of a cost table."""
    split, diagonals = packed.split, packed.diagonals
    modulus = diagonals.modulus
    baby = np.where(split.baby, diagonals.cells[:, 1] * modulus + split.baby, -1)
    giant = np.where(split.giant, diagonals.cells[:, 0] * modulus + split.giant, -1)
    babies, baby_line = np.unique(baby, return_inverse=True)
    giants, giant_line = np.unique(giant, return_inverse=True)
    first_baby, first_giant = int(babies[0] < 0), int(giants[0] < 0)
    baby_line = baby_line - first_baby
    count = len(babies) - first_baby
    giant_line = np.where(giant < 0, -1, giant_line - first_giant + count)
    unit = _unit_ms(costs, packed.level)
    line_ms = np.concatenate([np.full(count, unit["baby"]), np.full(len(giants) - first_giant, unit["giant"])])
    pairs = np.unique(np.stack([packed.classes.ravel()[packed.pairs[0]], packed.pairs[1]], axis=1), axis=0)
    folds_ms = unit["fold"] * diagonals.fold_count
    lines = np.stack([baby_line, giant_line], axis=1)
    return GridLayer(packed.classes, pairs, lines, line_ms, unit["cell"], folds_ms)


def _unit_ms(costs: Costs, level: int) -> Mapping[str, float]:
    """Milliseconds of a baby line, a giant line, a cell and a fold."""
    leaves: dict[str, tuple[str, ...]] = (
        {"baby": ("hoisted",), "giant": ("giant",), "cell": ("product",)}
        if costs.fused
        else {"baby": (Kind.ROTATE,), "giant": (Kind.ROTATE, Kind.ADD), "cell": (Kind.MUL_PLAIN, Kind.ADD)}
    )
    leaves["fold"] = (Kind.ROTATE, Kind.ADD)
    return {what: 1e3 * costs.leaves((leaf, level, 1) for leaf in names) for what, names in leaves.items()}
