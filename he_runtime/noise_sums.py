"""Mean squares and error variances of a transform's sums, where all operands are constants: all cells at once.

In column packing a transform has thousands of cells, each a product of a number or a few with a constant; one at a time they
would take most of the time that planning takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .encoding import constants
from .plan import Op, Plan
from .plan.ops import distinct_pairs

__all__ = ["ConstantOperands", "summed"]

Slots = npt.NDArray[np.float64]
Pair = tuple[Slots, Slots]  # mean square of a value, variance of its error
_MOST_ELEMENTS = 1 << 22  # of all products: 32 MiB an array


@dataclass(frozen=True)
class ConstantOperands:
    """Of the cells of a transform: the squared constants, and the squared errors of rounding them."""

    squared: Slots
    rounding: Slots

    @classmethod
    def of(cls, op: Op, plan: Plan, size: int, encoding: bool) -> ConstantOperands | None:
        """None where an operand is no constant, or products of `size` elements each are too many to hold."""
        assert op.cells is not None
        if len(op.cells) * size > _MOST_ELEMENTS:
            return None
        plains = [plan.plaintexts[p] for p in op.cells[:, 4].tolist()]
        if any(len(plan.vectors[p.vector]) > 1 for p in plains):
            return None
        values = np.array([plan.vectors[p.vector][0] for p in plains])
        scale = plains[0].scale  # the same for all: their products are added
        rounding = (constants(values, scale) - values) ** 2 if encoding else np.zeros_like(values)
        return cls(values**2, rounding)


def summed(op: Op, rotated: Mapping[tuple[int, int], Pair], operands: ConstantOperands) -> dict[tuple[int, int], Pair]:
    """(output, giant step) -> the sum over its cells; `rotated` holds the operand of every (input, baby step)."""
    assert op.cells is not None
    sources, rows = distinct_pairs(op.cells[:, 1], op.cells[:, 2])
    groups, into = distinct_pairs(op.cells[:, 0], op.cells[:, 3])
    order = np.argsort(into, kind="stable")
    starts = np.searchsorted(into[order], np.arange(len(groups)))
    shape = np.broadcast_shapes(*(x.shape for pair in rotated.values() for x in pair))
    held, erring = (np.stack([np.broadcast_to(rotated[source][k], shape) for source in sources])[rows] for k in (0, 1))
    each = (-1, *(1 for _ in shape))
    squared, rounding = operands.squared.reshape(each), operands.rounding.reshape(each)
    sums = [np.add.reduceat(x[order], starts, axis=0) for x in (held * squared, erring * squared + held * rounding)]
    return {group: (sums[0][k], sums[1][k]) for k, group in enumerate(groups)}
