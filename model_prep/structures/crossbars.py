"""Filters and columns pruned in multiples of a crossbar, so that whole crossbars fall away.

Yuan et al., ISLPED 2019, arXiv 1908.11691. The matrix view is mapped onto crossbars of `rows` filters by `columns`
columns. Filters and columns that are empty need no place: what is left is mapped anew. Under encryption a crossbar is a
plaintext tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from he_runtime.errors import ModelError

from .layer import Bools, Floats, Ints, Layer
from .structure import checked_energy, kept_count

__all__ = ["Crossbars", "crossbar_count", "occupied_crossbars", "packed_crossbars"]


@dataclass(frozen=True)
class Crossbars:
    """Crossbars of `rows` filters by `columns` columns of the matrix view (128 x 128 in the paper)."""

    rows: int = 128
    columns: int = 128
    name: str = field(default="crossbars", init=False)

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ModelError(f"cannot use crossbars of {self.rows} x {self.columns}: need at least 1 x 1")

    def keep(self, layer: Layer, energy: Floats, density: float) -> Bools:
        """At most T = max(1, round(density * crossbars)) crossbars stay: the a x b <= T that keep most energy.

        Kept are min(a * rows, filters) filters and min(b * columns, all columns) columns, the same for all crossbars.
        Which ones is found by alternation, from both sides: an optimum is as hard as a heaviest submatrix.
        """
        matrix = layer.matrix(checked_energy(layer, energy, density))
        down, across = self.grid(layer)
        most = kept_count(density, down * across)
        shapes = {(a, min(across, most // a)) for a in range(1, min(down, most) + 1)}
        masks = [self._submatrix(matrix, a * self.rows, b * self.columns) for a, b in sorted(shapes)]
        return max(masks, key=lambda mask: float(matrix[mask].sum())).reshape(layer.shape)

    def keep_shares(self, layer: Layer, energy: Floats, filters: float, columns: float) -> Bools:
        """The mask that keeps the shares `filters` and `columns`, both counts rounded up to multiples of the crossbar."""
        matrix = layer.matrix(checked_energy(layer, checked_energy(layer, energy, filters), columns))
        height, width = matrix.shape
        a, b = math.ceil(filters * height / self.rows), math.ceil(columns * width / self.columns)
        return self._submatrix(matrix, max(1, a) * self.rows, max(1, b) * self.columns).reshape(layer.shape)

    def grid(self, layer: Layer) -> tuple[int, int]:
        """Crossbars down and across the unpruned layer."""
        height, width = layer.matrix_shape
        return -(-height // self.rows), -(-width // self.columns)

    def _submatrix(self, energy: Floats, rows: int, columns: int) -> Bools:
        """The `rows` x `columns` submatrix (counts capped at the matrix) that alternation finds to be heaviest."""
        height, width = energy.shape
        rows, columns = min(rows, height), min(columns, width)
        by_columns = _heaviest(energy.sum(axis=0), columns)
        by_rows = _heaviest(energy[_heaviest(energy.sum(axis=1), rows)].sum(axis=0), columns)
        found = [_alternate(energy, rows, start) for start in (by_columns, by_rows)]
        kept = max(found, key=lambda pair: float(energy[np.ix_(*pair)].sum()))
        mask = np.zeros(energy.shape, dtype=np.bool_)
        mask[np.ix_(*kept)] = True
        return mask


def _alternate(energy: Floats, rows: int, columns: Ints) -> tuple[Ints, Ints]:
    """The best `rows` rows for the columns, the best columns for those rows, and so on while it keeps more."""
    best = -1.0
    while True:
        kept_rows = _heaviest(energy[:, columns].sum(axis=1), rows)
        columns = _heaviest(energy[kept_rows].sum(axis=0), len(columns))
        weight = float(energy[np.ix_(kept_rows, columns)].sum())
        if weight <= best * (1 + 1e-12):
            return kept_rows, columns
        best = weight


def crossbar_count(height: int, width: int, rows: int, columns: int) -> int:
    """Crossbars that a full `height` x `width` matrix takes."""
    return -(-height // rows) * -(-width // columns)


def occupied_crossbars(matrix: Bools, rows: int, columns: int) -> int:
    """Crossbars of the matrix as it lies that hold a non-zero."""
    rows, columns = (max(1, min(size, whole)) for size, whole in zip((rows, columns), matrix.shape, strict=True))
    down, across = np.nonzero(matrix)
    return len(np.unique(down // rows * (matrix.shape[1] + 1) + across // columns))


def packed_crossbars(matrix: Bools, rows: int, columns: int) -> int:
    """Crossbars that hold a non-zero once empty rows and columns are left out and the rest is mapped anew."""
    return occupied_crossbars(matrix[matrix.any(axis=1)][:, matrix.any(axis=0)], rows, columns)


def _heaviest(sums: Floats, count: int) -> Ints:
    """Indices of the `count` largest, ascending; ties to the lower."""
    return np.sort(np.argsort(-sums, kind="stable")[:count])
