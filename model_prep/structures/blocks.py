"""Whole rows and whole columns inside each block, independently of the other blocks.

Ma et al., "BLK-REW", arXiv 2001.08357. The zeros of a block are a union of its rows and columns, so what is left of
it is again a small dense matrix. A block of the whole matrix is plain row and column pruning, a block of one weight is
unstructured pruning.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from he_runtime.errors import ModelError

from .layer import Bools, Floats, Ints, Layer
from .partitions import BlockColumns, BlockRows
from .structure import checked_energy, group_energy, kept_count

__all__ = ["BlockRowsAndColumns"]


@dataclass(frozen=True)
class BlockRowsAndColumns:
    """Blocks of `rows` x `columns` of the matrix view; where a size does not divide, the last blocks are smaller.

    The structure is no partition: a weight belongs to a row piece and to a column piece. `groupings` has the two
    partitions whose norms a reweighted penalty sums.
    """

    rows: int
    columns: int
    name: str = field(default="block-rows-and-columns", init=False)

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ModelError(f"cannot cut blocks of {self.rows} x {self.columns}: need at least 1 x 1")

    @property
    def groupings(self) -> tuple[BlockRows, BlockColumns]:
        return BlockRows(self.rows, self.columns), BlockColumns(self.rows, self.columns)

    def keep(self, layer: Layer, energy: Floats, density: float) -> Bools:
        """At most T = max(1, round(density * weights)) weights stay, and more than T minus a block's longer side.

        The best such mask is hard to find (it contains the choice of a heaviest submatrix). This one removes, over all
        blocks, the pieces of least energy per weight, each block in an order of its own; and it keeps at least as
        much energy as the same budget spent on row pieces alone or on column pieces alone.
        """
        values = checked_energy(layer, energy, density)
        budget = kept_count(density, layer.size)
        candidates = [self._both(layer, values, budget)]
        candidates += [_pieces(g.labels(layer), values, budget) for g in self.groupings]
        return max(candidates, key=lambda mask: float(values[mask].sum()))

    def _both(self, layer: Layer, energy: Floats, budget: int) -> Bools:
        blocks = self._cut(layer.matrix(energy))
        real: Bools = self._cut(np.ones(layer.matrix_shape)) > 0
        paths = _Paths(blocks, np.any(real, axis=2), np.any(real, axis=1))
        rows, columns = paths.remaining(layer.size, budget)
        height, width = layer.matrix_shape
        grid = (rows[:, :, None] & columns[:, None, :]).reshape(
            -(-height // self.rows), -(-width // self.columns), self.rows, self.columns
        )
        matrix = grid.swapaxes(1, 2).reshape(grid.shape[0] * self.rows, -1)
        return np.ascontiguousarray(matrix[:height, :width]).reshape(layer.shape)

    def _cut(self, matrix: Floats) -> Floats:
        """(blocks, rows, columns), the edges filled with zeros."""
        height, width = matrix.shape
        padded = np.pad(matrix, ((0, -height % self.rows), (0, -width % self.columns)))
        shape = (padded.shape[0] // self.rows, self.rows, padded.shape[1] // self.columns, self.columns)
        return padded.reshape(shape).swapaxes(1, 2).reshape(-1, self.rows, self.columns)


class _Paths:
    """For every block at once: in which order its rows and columns fall, what each costs and how many weights it frees."""

    def __init__(self, energy: Floats, rows: Bools, columns: Bools) -> None:
        count, height, width = energy.shape
        self.energy, self.rows, self.columns = energy, rows.copy(), columns.copy()
        self.start = rows, columns
        self.row_sums, self.column_sums = energy.sum(axis=2), energy.sum(axis=1)
        steps = height + width
        self.is_row = np.zeros((count, steps), dtype=np.bool_)
        self.index = np.zeros((count, steps), dtype=np.int64)
        self.size = np.zeros((count, steps), dtype=np.int64)  # 0: the block is empty already
        self.ratio = np.full((count, steps), np.inf)
        for step in range(steps):
            self._advance(step)

    def _advance(self, step: int) -> None:
        """Remove from each block the piece with least energy per weight; never more than one weight at the very end."""
        block = np.arange(len(self.energy))
        heights, widths = self.rows.sum(axis=1), self.columns.sum(axis=1)
        row, row_ratio = _least(self.row_sums, self.rows, widths)
        column, column_ratio = _least(self.column_sums, self.columns, heights)
        tie_to_row = (row_ratio == column_ratio) & (widths < heights)
        is_row = (heights > 1) & ((widths == 1) | (row_ratio < column_ratio) | tie_to_row)
        alive = (heights > 0) & (widths > 0)
        self.is_row[:, step], self.index[:, step] = is_row, np.where(is_row, row, column)
        self.size[:, step] = np.where(alive, np.where(is_row, widths, heights), 0)
        self.ratio[:, step] = np.where(alive, np.where(is_row, row_ratio, column_ratio), np.inf)
        b, r = block[alive & is_row], row[alive & is_row]
        self.rows[b, r] = False
        self.column_sums[b] = np.maximum(self.column_sums[b] - self.energy[b, r, :], 0.0)
        b, c = block[alive & ~is_row], column[alive & ~is_row]
        self.columns[b, c] = False
        self.row_sums[b] = np.maximum(self.row_sums[b] - self.energy[b, :, c], 0.0)

    def remaining(self, size: int, budget: int) -> tuple[Bools, Bools]:
        """(blocks, rows) and (blocks, columns) once at most `budget` of `size` weights are left over all blocks.

        A block's pieces fall in its own order: a piece comes no earlier than the dearest one before it.
        """
        priority = np.maximum.accumulate(self.ratio, axis=1).ravel()
        order = np.argsort(priority, kind="stable")
        order = order[self.size.ravel()[order] > 0]
        gone = order[: _needed(self.size.ravel()[order], size - budget)]
        rows, columns = (alive.copy() for alive in self.start)
        block, is_row, index = gone // self.size.shape[1], self.is_row.ravel()[gone], self.index.ravel()[gone]
        rows[block[is_row], index[is_row]] = False
        columns[block[~is_row], index[~is_row]] = False
        return rows, columns


def _least(sums: Floats, alive: Bools, sizes: Ints) -> tuple[Ints, Floats]:
    """Index of the living piece with least energy in each block, and its energy per weight."""
    masked = np.where(alive, sums, np.inf)
    index = np.argmin(masked, axis=1)
    return index, masked[np.arange(len(sums)), index] / np.maximum(sizes, 1)


def _needed(sizes: Ints, excess: int) -> int:
    """How many pieces, in order, free at least `excess` weights."""
    return int(np.searchsorted(np.cumsum(sizes), excess)) + 1 if excess > 0 else 0


def _pieces(labels: Ints, energy: Floats, budget: int) -> Bools:
    """The mask that drops the pieces of one partition with least energy per weight until `budget` weights stay."""
    sizes = np.bincount(labels.ravel())
    order = np.argsort(group_energy(labels, energy) / sizes, kind="stable")
    alive = np.ones(len(sizes), dtype=np.bool_)
    alive[order[: _needed(sizes[order], labels.size - budget)]] = False
    return np.asarray(alive[labels], dtype=np.bool_)
