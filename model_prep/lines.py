"""Which rotations each weight needs: the baby and giant steps of its diagonals in the planner's own packing.

A diagonal is applied as a baby step on an input ciphertext and a giant step on an output ciphertext. Steps are paid per
(ciphertext, step), here called a *line*: a rotation falls away only when every weight on its line is zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from he_runtime.compile import lower
from he_runtime.cost import load_default
from he_runtime.lower.diagonals import DiagonalSet
from he_runtime.lower.packing import Packing
from he_runtime.lower.stages import LinearStage
from he_runtime.model import CompressedModel

from .diagonals import Ints, contiguous_positions, diagonal_classes, set_ids
from .graph import LINEAR_OPS

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


def weight_keys(model: CompressedModel) -> dict[str, str]:
    """Weight array -> the first layer that uses it, in evaluation order."""
    found: dict[str, str] = {}
    for node in model.nodes:
        if node.op in LINEAR_OPS:
            found.setdefault(node.arrays["weight"], node.name)
    return found


def packed_lines(model: CompressedModel, degree: int) -> dict[str, Lines]:
    """The lines of every weight array when nothing is pruned, at ring degree `degree` and one query per ciphertext.

    A layer that the planner merges with another one that has weights or averages gets contiguous slots and a square
    split. Raises DoesNotFit where no such ring holds the model.
    """
    numbered = _numbered(model)
    program, _ = lower(numbered, degree, 1, load_default("tenseal"))
    found: dict[str, Lines] = {}
    for stage in program.stages:
        key = _only_weight(model, stage) if isinstance(stage, LinearStage) else None
        if key is not None and key not in found:
            assert isinstance(stage, LinearStage)
            found[key] = _stage_lines(stage, program.packing, model.arrays[key].shape)
    keys = weight_keys(model)
    return {key: found[key] if key in found else _fallback(model, key, keys[key]) for key in keys}


def _numbered(model: CompressedModel) -> CompressedModel:
    """Weights become 1, 2, 3, ...: exact in float64 and never zero, so that the pattern is the dense one."""
    keys = weight_keys(model)
    shapes = {key: model.arrays[key].shape for key in keys}
    numbers = {key: np.arange(1.0, 1 + int(np.prod(shape))).reshape(shape) for key, shape in shapes.items()}
    real = {key: step for key, step in model.quantization.items() if key not in keys}
    return model.with_(arrays={**model.arrays, **numbers}, quantization=real)


def _only_weight(model: CompressedModel, stage: LinearStage) -> str | None:
    """The one array whose numbers the stage's matrix holds unmixed, if there is one."""
    nodes = [model.node(name) for name in stage.nodes]
    weights = [n.arrays["weight"] for n in nodes if n.op in LINEAR_OPS]
    unmixed = len(weights) == 1 and all(n.op in LINEAR_OPS or n.op == "reshape" for n in nodes)
    return weights[0] if unmixed else None


def _stage_lines(stage: LinearStage, packing: Packing, shape: tuple[int, ...]) -> Lines:
    diagonals = packing.packed[stage.name].diagonals
    weight = np.rint(packing.operand(stage)[0].matrix.tocoo().data).astype(np.int64) - 1
    pairs = np.unique(np.stack([weight, diagonals.entry_cell.astype(np.int64)]), axis=1)
    classes = _sets_of_cells(pairs, int(np.prod(shape))).reshape(shape)
    return Lines(classes, _incidence(classes.ravel()[pairs[0]], pairs[1], _lines_of_cells(diagonals)))


def _sets_of_cells(pairs: Ints, size: int) -> Ints:
    """Sorted (weight, cell) columns -> for each of `size` weights the number of its set of cells."""
    counts = np.bincount(pairs[0], minlength=size)
    place = np.arange(pairs.shape[1]) - np.repeat(np.cumsum(counts) - counts, counts)
    table: npt.NDArray[np.int64] = np.full((size, max(1, int(counts.max()))), -1, dtype=np.int64)
    table[pairs[0], place] = pairs[1]
    return set_ids(table)


def _lines_of_cells(diagonals: DiagonalSet) -> Ints:
    """(cells, 2): the line of each cell's baby step and of its giant step, -1 where the step is zero."""
    split, modulus = diagonals.split, diagonals.modulus
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


def _fallback(model: CompressedModel, key: str, name: str) -> Lines:
    node = model.node(name)
    positions = contiguous_positions(node.shape, model.shape_of(node.inputs[0]))
    classes = diagonal_classes(node, model.arrays[key].shape, positions)
    _, flat = np.unique(classes, return_inverse=True)
    classes = flat.reshape(classes.shape).astype(np.int64)
    numbers = np.arange(int(classes.max()) + 1)
    side = int(np.ceil(np.sqrt(len(numbers))))
    rows = np.concatenate(
        [np.stack([numbers, numbers % side], axis=1), np.stack([numbers, side + numbers // side], axis=1)]
    )
    return Lines(classes, rows[(rows[:, 1] != 0) & (rows[:, 1] != side)])
