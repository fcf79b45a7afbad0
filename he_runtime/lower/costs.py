"""What the layout choice weighs: seconds of a backend's cost table, summed over the leaves of a stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..cost import CostTable

__all__ = ["Costs"]


@dataclass(frozen=True)
class Costs:
    """Seconds at one ring degree by a cost table."""

    table: CostTable
    degree: int

    def leaves(self, counts: Iterable[tuple[str, int, int]]) -> float:
        """Of (leaf, level, how often)."""
        return sum(n * self.table.lookup(leaf, self.degree, level).seconds for leaf, level, n in counts if n)

    def counted(self, counts: Mapping[tuple[str, int], int]) -> float:
        """Of (leaf, level) -> how often."""
        return self.leaves((leaf, level, n) for (leaf, level), n in counts.items())

    def linear(self, rotations: int, products: int, level: int) -> float:
        """Of a packed linear stage; every product and every fold joins by an addition."""
        return self.leaves(
            (("rotate", level, rotations), ("mul_plain", level, products), ("add", level, products + rotations))
        )

    def border(self, ciphertexts: int, level: int) -> float:
        """Of taking a client's ciphertexts into the backend."""
        return self.leaves((("upload", level, ciphertexts),))
