"""Weights on a coarse grid: with one feature per ciphertext they are integers, exact at a scale of a few bits.

An operand of period 1 is encoded as a single integer, so a weight that is a small multiple of its layer's step needs no
more scale than 1 / step and has no rounding error. In every longer period the embedding turns the integers of a vector
into arbitrary reals, and their grid is lost. (CryptoNets, ICML'16, multiplies by small integers in this way.)

A row is a ciphertext of its own, so each may have a step, and then a scale, of its own, where an activation brings them
together: the coefficients of its quadratic do so. Weights that are +-step are signs, and cost no product (Plan.signs).
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from .program import Program
from .stage_types import LinearStage, QuadraticStage, Vector

__all__ = ["grid_step", "integer_steps", "integral_product", "is_plain", "with_rescales"]

MAX_INTEGER = 2**12  # beyond it a real scale is as short
_FEWER = 0.5  # of the products, to be worth one by a coefficient in every activation, and its bits
_TOLERANCE = 1e-7  # of the largest, hence below a thousandth of any step that counts


def grid_step(values: npt.NDArray[np.float64]) -> float | None:
    """The coarsest step of which every value is an integer multiple of at most 2^12; None where there is none."""
    distinct = np.unique(np.abs(values[values != 0]))
    if not len(distinct):
        return None
    largest, step = float(distinct[-1]), float(distinct[0])
    for value in distinct[1:].tolist():
        step = _common(value, step, largest * _TOLERANCE)
        if largest > (MAX_INTEGER + 0.5) * step:
            return None
        step = value / round(value / step)  # Euclid amplifies rounding errors; a quotient does not
    multiples = distinct / step
    return step if np.abs(multiples - np.rint(multiples)).max() < 1e-6 else None


def _common(a: float, b: float, zero: float) -> float:
    """The greatest common divisor of two reals, by Euclid; rests below `zero` are rounding."""
    while b > zero:
        rest = a % b
        a, b = b, 0.0 if b - rest < zero else rest
    return a


def integer_steps(program: Program) -> dict[str, Vector] | None:
    """Stage -> the step of its weights, (1,) or one per ciphertext of its output.

    None unless the program is a chain of integer layers and quadratics, column-packed. Rows have steps of their own only
    before a quadratic.
    """
    steps: dict[str, Vector] = {}
    tensor = program.source
    for stage, after in zip(program.stages, [*program.stages[1:], None], strict=True):
        if stage.inputs != (tensor,) or program.packing.layouts[stage.name].slots > 1:
            return None
        if isinstance(stage, LinearStage):
            found = _steps(stage, isinstance(after, QuadraticStage))
            if found is None:
                return None
            steps[stage.name] = found if len(found) == 1 else program.packing.layouts[stage.name].spread(found)[:, 0]
        elif not isinstance(stage, QuadraticStage):
            return None
        tensor = stage.name
    return steps


def _steps(stage: LinearStage, by_row: bool) -> Vector | None:
    """One step of all weights; or one of each row, where there is no other or most products become signs by it."""
    matrix = stage.map.matrix
    whole = grid_step(matrix.data)
    rows = _row_steps(stage) if by_row else None
    if whole is None or rows is None:
        return rows if whole is None else np.array([whole])
    counts = [_products(matrix.data, np.repeat(s, np.diff(matrix.indptr))) for s in (np.full(len(rows), whole), rows)]
    return rows if counts[1] + len(rows) < _FEWER * counts[0] else np.array([whole])


def _row_steps(stage: LinearStage) -> Vector | None:
    matrix = stage.map.matrix
    rows = [matrix.data[a:b] for a, b in pairwise(matrix.indptr.tolist())]
    found = [grid_step(row) if row.any() else math.inf for row in rows]  # an empty row is constant, and no ciphertext
    if any(step is None for step in found):
        return None
    steps = np.array(found, dtype=np.float64)
    return np.where(np.isinf(steps), steps[np.isfinite(steps)].max(initial=0.0) or 1.0, steps)


def _products(weights: Vector, steps: Vector) -> int:
    return int((np.rint(np.abs(weights / steps)) > 1).sum())


def is_plain(stage: QuadraticStage, scales: Vector) -> bool:
    """Whether a quadratic of inputs at these scales is a square, without a product by a coefficient."""
    return stage.is_square and bool((scales == scales[0]).all())


def integral_product(stage: QuadraticStage, scales: Vector, coefficient: float) -> float:
    """The scale of a quadratic before its rescale, its inputs being at these scales.

    Where coefficients are needed, the largest as an integer is at most `coefficient`: every ciphertext's is encoded at the
    scale that brings its square to the common one.
    """
    if is_plain(stage, scales):
        return float(scales[0] ** 2)
    largest = float(np.abs(stage.a).max(initial=0.0)) or float(np.abs(stage.b).max(initial=0.0)) or 1.0
    return coefficient * float(scales.min()) ** 2 / largest


def with_rescales(program: Program, rescaled: frozenset[str], base: int) -> Program:
    """The program with these squares alone rescaled, and `base` primes left at the end."""
    stages = [
        replace(s, rescales=int(s.name in rescaled)) if isinstance(s, QuadraticStage) else s for s in program.stages
    ]
    return replace(program, stages=stages, base=base - 1)
