"""Weights on a coarse grid: with one feature per ciphertext they are integers, exact at a scale of a few bits.

An operand of period 1 is encoded as a single integer, so a weight that is a small multiple of its layer's step needs no
more scale than 1 / step and has no rounding error. In every longer period the embedding turns the integers of a vector
into arbitrary reals, and their grid is lost. (CryptoNets, ICML'16, multiplies by small integers in this way.)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .program import Program
from .stage_types import LinearStage, QuadraticStage

__all__ = ["grid_step", "integer_steps", "with_rescales"]

MAX_INTEGER = 2**12  # beyond it a real scale is as short
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


def integer_steps(program: Program) -> dict[str, float] | None:
    """Stage -> step of its weights; None unless the program is a chain of integer layers and squares, column-packed."""
    steps: dict[str, float] = {}
    tensor = program.source
    for stage in program.stages:
        if stage.inputs != (tensor,) or program.packing.layouts[stage.name].slots > 1:
            return None
        if isinstance(stage, LinearStage):
            step = grid_step(stage.map.matrix.data)
            if step is None:
                return None
            steps[stage.name] = step
        elif not (isinstance(stage, QuadraticStage) and stage.is_square):
            return None
        tensor = stage.name
    return steps


def with_rescales(program: Program, rescaled: frozenset[str], base: int) -> Program:
    """The program with these squares alone rescaled, and `base` primes left at the end."""
    stages = [
        replace(s, rescales=int(s.name in rescaled)) if isinstance(s, QuadraticStage) else s for s in program.stages
    ]
    return replace(program, stages=stages, base=base - 1)
