"""A floor under the error of any packing on a ring, so that a hopeless one is skipped before anything is packed.

Whatever the packing, a linear layer with n weights takes at least n / p products by vectors of period p, and rounding
each leaves p / 6 / s^2 times the operand's mean square in a slot: n / 6 / s^2 together. Only that and fresh encryption
count here; rescaling and key switching come on top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .lower.stage_types import LinearStage, QuadraticStage, Stage
from .lower.statistics import Statistics
from .noise import ERROR_VARIANCE
from .params import MAX_LOG2_QP

__all__ = ["error_floor"]

_DELTAS = range(16, 44, 2)  # bits
_LEAST_FIRST_BITS = 8  # of the first prime above Delta


def error_floor(stages: Sequence[Stage], facts: Statistics, degree: int, max_prime_bits: float) -> float:
    """A standard deviation per output that no chain of the ring falls below; 0 where nothing is known.

    Only a chain of linear layers and squares is followed.
    """
    depth = sum(isinstance(s, QuadraticStage) for s in stages)
    tensor = facts.model.input.name
    for stage in stages:
        known = isinstance(stage, LinearStage) or (isinstance(stage, QuadraticStage) and stage.is_square)
        if not known or stage.inputs != (tensor,):
            return 0.0
        tensor = stage.name
    squares = {s.name: s.map.matrix.multiply(s.map.matrix) for s in stages if isinstance(s, LinearStage)}
    floors = []
    for delta in _DELTAS if depth else ():
        prime = min(max_prime_bits, (MAX_LOG2_QP[degree] - delta - _LEAST_FIRST_BITS) / (depth + 1))
        floors.append(_sigma(stages, squares, facts, degree, delta, (prime - delta) / 2))
    return min(floors, default=0.0)


def _sigma(
    stages: Sequence[Stage], squares: dict[str, Any], facts: Statistics, degree: int, delta: float, operand: float
) -> float:
    """Follow the variance of every element; scales in bits. The last layer's operands count as exact."""
    fresh = degree * ERROR_VARIANCE / 2 / 4.0**delta
    variance = np.full(math.prod(facts.model.input.shape), fresh)
    for k, stage in enumerate(stages):
        mean_square = facts.mean_squares[stage.inputs[0]][0]
        if isinstance(stage, LinearStage):
            weights = squares[stage.name].nnz if k + 1 < len(stages) else 0
            variance = squares[stage.name] @ variance + weights * float(mean_square.mean()) / 6 / 4.0**operand
        else:
            variance = 4 * mean_square * variance
    return float(np.sqrt(variance.mean()))
