"""Which rotations each weight needs: the baby and giant steps of its diagonals in the planner's own packing.

A diagonal is applied as a baby step on an input ciphertext and a giant step on an output ciphertext. Steps are paid per
(ciphertext, step), here called a *line*: a rotation falls away only when every weight on its line is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from he_runtime.cost import CostTable
from he_runtime.lower.diagonals import DiagonalSet
from he_runtime.lower.split import Split
from he_runtime.model import CompressedModel

from ..graph import weight_keys
from .diagonals import Ints, contiguous_classes
from .packing import PackedWeights, packed_weights

__all__ = ["Lines", "packed_lines", "weight_keys"]


@dataclass(frozen=True)
class Lines:
    """The classes of one weight array, and the lines of each class.

    `classes` numbers each weight's set of diagonals, in the weight's shape. `incidence` has a row (class, line) for
    every rotation that a class needs; steps of zero need none and are not listed.
    """

    classes: Ints
    incidence: Ints

    @property
    def class_count(self) -> int:
        return int(self.classes.max()) + 1

    @property
    def line_count(self) -> int:
        return int(self.incidence[:, 1].max()) + 1 if len(self.incidence) else 0


def packed_lines(model: CompressedModel, degree: int, table: CostTable | None = None) -> dict[str, Lines]:
    """The lines of every weight array when nothing is pruned, at ring degree `degree` and one query per ciphertext.

    A layer that `packed_weights` leaves out gets contiguous slots and a square split. Raises DoesNotFit where no such
    ring holds the model.
    """
    packed = packed_weights(model, degree, table)
    return {
        key: _lines(packed[key]) if key in packed else _fallback(model, name)
        for key, name in weight_keys(model).items()
    }


def _lines(packed: PackedWeights) -> Lines:
    classes = packed.classes.ravel()[packed.pairs[0]]
    return Lines(packed.classes, _incidence(classes, packed.pairs[1], _lines_of_cells(packed.diagonals, packed.split)))


def _lines_of_cells(diagonals: DiagonalSet, split: Split) -> Ints:
    """(cells, 2): the line of each cell's baby step and of its giant step, -1 where the step is zero."""
    modulus = diagonals.modulus
    baby = np.where(split.baby, diagonals.cells[:, 1] * modulus + split.baby, -1)
    giant = np.where(split.giant, diagonals.cells[:, 0] * modulus + split.giant, -1)
    first_giant = int(baby.max(initial=0)) + 1
    return np.stack([baby, np.where(giant < 0, -1, giant + first_giant)], axis=1)


def _incidence(classes: Ints, cells: Ints, lines: Ints) -> Ints:
    """(class, line) rows, each once, lines renumbered from 0; the (class, cell) pairs are parallel arrays."""
    rows = np.unique(np.stack([classes, cells], axis=1), axis=0)
    pairs = np.concatenate([np.stack([rows[:, 0], lines[rows[:, 1], side]], axis=1) for side in (0, 1)])
    pairs = np.unique(pairs[pairs[:, 1] >= 0], axis=0)
    _, pairs[:, 1] = np.unique(pairs[:, 1], return_inverse=True)
    return pairs


def _fallback(model: CompressedModel, name: str) -> Lines:
    classes = contiguous_classes(model, name)
    _, flat = np.unique(classes, return_inverse=True)
    classes = flat.reshape(classes.shape).astype(np.int64)
    numbers = np.arange(int(classes.max()) + 1)
    side = int(np.ceil(np.sqrt(len(numbers))))
    rows = np.concatenate(
        [np.stack([numbers, numbers % side], axis=1), np.stack([numbers, side + numbers // side], axis=1)]
    )
    return Lines(classes, rows[(rows[:, 1] != 0) & (rows[:, 1] != side)])
