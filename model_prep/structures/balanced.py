"""Load-balanced gather-scatter patterns GS(B, k) (Sun et al., arXiv 2112.10898).

Column j of the matrix view lies in bank j mod B. A bundle is B/k consecutive rows; a group is one gather: k weights of
each row of a bundle, at most one from each bank. A bundle with G groups has k * G weights in every row and G in every
bank, and by Koenig's theorem these two counts suffice: the groups can always be peeled off (gather.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from he_runtime.errors import ModelError

from .gather import bundle_starts
from .layer import Bools, Floats, Ints, Layer
from .structure import checked_energy
from .transport import exact_selection, greedy_selection

__all__ = ["SOLVERS", "Balanced", "shift_classes"]

SOLVERS = {"exact": exact_selection, "greedy": greedy_selection}


@dataclass(frozen=True)
class Balanced:
    """GS(bank, per_row): `bank` = B, `per_row` = k, a divisor of B. k = B is the paper's horizontal, k = 1 its vertical.

    The rows that are left where B/k does not divide their number form a last bundle of r < B/k rows, whose groups hold
    r * k weights: at most one from each bank, so that some lanes idle.

    `cyclic` restricts the groups to shifts, the same in all bundles: row i of a bundle takes its k weights from banks
    (i * k + s)..(i * k + s + k - 1) mod B with s a multiple of k. With k = 1 a shift is a class of diagonals
    (column - row) mod B, an operand of slot packing. `solver` is "exact" (a linear program per bundle: seconds for a
    large layer) or "greedy" (about a hundredth of the energy less, and much faster); cyclic patterns are exact anyhow.
    """

    bank: int
    per_row: int
    cyclic: bool = False
    solver: str = "exact"
    name: str = field(default="balanced", init=False)

    def __post_init__(self) -> None:
        if self.bank < 1 or self.per_row < 1 or self.bank % self.per_row:
            raise ModelError(
                f"cannot balance GS({self.bank}, {self.per_row}): need at least 1 weight per row, in a number that "
                "divides the banks"
            )
        if self.solver not in SOLVERS:
            raise ModelError(f"cannot balance by solver {self.solver!r}: need one of {sorted(SOLVERS)}")

    @property
    def bundle_rows(self) -> int:
        """Rows of a full bundle."""
        return self.bank // self.per_row

    def groups(self, layer: Layer, density: float) -> int:
        """G of every bundle: max(1, round(density * columns / k)), at most what the smallest bank holds.

        Every row keeps exactly k * G weights. Raises ModelError where the layer has fewer columns than banks.
        """
        columns = layer.matrix_shape[1]
        most = self.bundle_rows * (columns // self.bank)
        if not most:
            raise ModelError(
                f"cannot balance {layer.key!r} over {self.bank} banks: it has {columns} columns, need at least as many "
                f"as banks; try at most {columns} banks"
            )
        return min(most, max(1, round(density * columns / self.per_row)))

    def keep(self, layer: Layer, energy: Floats, density: float) -> Bools:
        """k * `groups(layer, density)` weights in every row: the pattern that keeps most energy, or nearly (`solver`)."""
        matrix = layer.matrix(checked_energy(layer, energy, density))
        groups = self.groups(layer, density)
        if self.cyclic:
            return self._shifted(matrix, groups).reshape(layer.shape)
        select = SOLVERS[self.solver]
        starts = bundle_starts(len(matrix), self.bundle_rows)
        bundles = [select(matrix[a : a + self.bundle_rows], self.bank, self.per_row, groups) for a in starts]
        return np.concatenate(bundles).reshape(layer.shape)

    def _shifted(self, energy: Floats, groups: int) -> Bools:
        """The best `groups` of (shift, depth): depth t of a shift takes the t-th strongest weight of each bank and row.

        Exact: the shifts are disjoint, and within one a deeper choice never keeps more than the one above it.
        """
        depth = energy.shape[1] // self.bank
        ranks = _ranks_in_bank(energy, self.bank)
        shift = self._shifts(*energy.shape)
        gains = np.zeros((self.bundle_rows, depth))
        inside = ranks < depth
        np.add.at(gains, (shift[inside], ranks[inside]), energy[inside])
        chosen = np.zeros(gains.size, dtype=np.bool_)
        chosen[np.argsort(-gains.ravel(), kind="stable")[:groups]] = True
        depths = chosen.reshape(gains.shape).sum(axis=1)  # how deep each shift goes, whatever the ties
        return np.asarray(ranks < depths[shift], dtype=np.bool_)

    def _shifts(self, rows: int, columns: int) -> Ints:
        """(rows, columns): which shift, in units of k, holds each weight."""
        place = np.arange(rows)[:, None] % self.bundle_rows
        block = np.arange(columns)[None, :] % self.bank // self.per_row
        return np.asarray((block - place) % self.bundle_rows, dtype=np.int64)


def shift_classes(mask: Bools, bank: int) -> Ints:
    """The distinct (column - row) mod `bank` of a mask (rows, columns): operands of slot packing with that modulus."""
    rows, columns = np.nonzero(mask)
    return np.unique((columns - rows) % bank)


def _ranks_in_bank(energy: Floats, bank: int) -> Ints:
    """(rows, columns): the rank, from 0, of each weight among those of its row and bank; ties to the lower column."""
    ranks = np.zeros(energy.shape, dtype=np.int64)
    for lane in range(bank):
        order = np.argsort(-energy[:, lane::bank], axis=1, kind="stable")
        np.put_along_axis(ranks[:, lane::bank], order, np.arange(order.shape[1])[None, :], axis=1)
    return ranks
