"""What the layout choice weighs: seconds of a backend's cost table, summed over the leaves of a stage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..cost import CostTable
from ..cost.formulas import SEAL_SHAPE, Shape
from ..plan.counts import FUSED
from .diagonals import DiagonalSet
from .leaf_counts import linear_leaves

__all__ = ["Costs"]


@dataclass(frozen=True)
class Costs:
    """Seconds at one ring degree by a cost table, on a gadget of that shape (primes per digit, special primes).

    `wide` is the share of rows under primes above 2^50.
    """

    table: CostTable
    degree: int
    shape: Shape = SEAL_SHAPE
    wide: float = 0.0

    @property
    def fused(self) -> bool:
        """Whether the backend runs a linear transform as one call."""
        return self.table.backend in FUSED

    def leaves(self, counts: Iterable[tuple[str, int, int]]) -> float:
        """Of (leaf, level, how often)."""
        return sum(n * self._seconds(leaf, level) for leaf, level, n in counts if n)

    def _seconds(self, leaf: str, level: int) -> float:
        return self.table.lookup(leaf, self.degree, level, self.shape, self.wide).seconds

    def counted(self, counts: Mapping[tuple[str, int], int]) -> float:
        """Of (leaf, level) -> how often."""
        return self.leaves((leaf, level, n) for (leaf, level), n in counts.items())

    def giant_weight(self, level: int) -> float:
        """How many baby steps a giant step costs, in tenths."""
        if not self.fused:
            return 1.0
        giant, baby = (self._seconds(leaf, level) for leaf in ("giant", "hoisted"))
        return max(1.0, round(giant / baby, 1))

    def linear(self, found: DiagonalSet, level: int) -> float:
        """Of a packed linear stage at its cheapest split."""
        counts = linear_leaves(found, found.split_at(self.giant_weight(level)), self.fused)
        return self.leaves((leaf, level, n) for leaf, n in counts.items())

    def guessed(self, diagonals: int, folds: int, outputs: int, level: int) -> float:
        """Of that many diagonals to each of `outputs` ciphertexts, evenly split."""
        if self.fused:
            babies = max(1.0, math.sqrt(self.giant_weight(level) * diagonals))
            giants = round(diagonals / babies - 1)
            counts = {
                "hoisted": round(babies - 1),
                "giant": giants,
                "product": diagonals,
                "rotate": folds,
                "add": folds,
            }
        else:
            rotations = round(2 * math.sqrt(diagonals) - 2 + folds)
            counts = {"rotate": rotations, "mul_plain": diagonals, "add": diagonals + rotations}
        return outputs * self.leaves((leaf, level, n) for leaf, n in counts.items())

    def border(self, ciphertexts: int, level: int) -> float:
        """Of taking a client's ciphertexts into the backend."""
        return self.leaves((("upload", level, ciphertexts),))
