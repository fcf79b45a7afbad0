"""Leaf operations per ciphertext of a stage's output: what every further ciphertext of a layout costs."""

from __future__ import annotations

from collections import Counter

from ..plan import Kind
from ..plan.counts import CONSTANT_PRODUCT, FLAT_PRODUCT
from .diagonals import DiagonalSet
from .levels import is_lazy
from .split import Split
from .stage_types import JoinStage, LinearStage, MultiplyStage, PolynomialStage, QuadraticStage, Stage

__all__ = ["Counts", "ciphertext_leaves", "linear_leaves"]

# (leaf, level) -> how often
Counts = Counter[tuple[str, int]]


def ciphertext_leaves(stages: list[Stage], stage: Stage, level: int) -> Counts:
    """Of one output ciphertext of `stage` at `level`; rotations and products of linear stages depend on the packing.

    Alignments and biases are left out: they follow from scales.
    """
    counts: Counts = Counter()
    if isinstance(stage, LinearStage):
        counts[Kind.RESCALE, level] += 0 if is_lazy(stages, stage.name) else 1
    elif isinstance(stage, QuadraticStage | MultiplyStage):
        square = isinstance(stage, QuadraticStage) and stage.is_square
        counts[Kind.SQUARE if square else Kind.MUL, level] += 1
        counts[Kind.MUL_PLAIN, level] += int(isinstance(stage, QuadraticStage) and not square)
        counts[Kind.RELINEARIZE, level] += 1
        counts[Kind.RESCALE, level] += stage.rescales
    elif isinstance(stage, PolynomialStage):
        for leaf, n in stage.structure.leaf_counts(level):
            counts[leaf] += n
    elif not isinstance(stage, JoinStage):
        counts[Kind.ADD, level] += 1
    return counts


def linear_leaves(found: DiagonalSet, split: Split, fused: bool) -> dict[str, int]:
    """Leaf -> how often, of a packed linear stage; all that joins a sum does so by an addition."""
    outputs, folds = found.outputs, found.fold_count
    if not fused:
        rotations, additions = split.rotations + folds, found.products - outputs + folds
        return {Kind.ROTATE: rotations, Kind.MUL_PLAIN: found.products, Kind.ADD: additions}
    flat = CONSTANT_PRODUCT if found.input_period == found.output_period == 1 else FLAT_PRODUCT
    return {
        "decompose": split.turned,
        "hoisted": split.babies,
        "product" if split.babies else flat: found.products,
        "giant": split.giants,
        "divide": outputs if split.rotations else 0,
        Kind.ROTATE: folds,
        Kind.ADD: folds,
    }
