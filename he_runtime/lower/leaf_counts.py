"""Leaf operations per ciphertext of a stage's output: what every further ciphertext of a layout costs."""

from __future__ import annotations

from collections import Counter

from ..plan import Kind
from .levels import is_lazy
from .stage_types import JoinStage, LinearStage, MultiplyStage, PolynomialStage, QuadraticStage, Stage

__all__ = ["Counts", "ciphertext_leaves"]

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
