"""Groups of a gather-scatter pattern: peeled off by perfect matchings, and how many gathers any mask takes.

Sun et al., arXiv 2112.10898. A gather reads at most one column from each of B banks.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from he_runtime.errors import ModelError

from .layer import Bools, Ints

__all__ = ["bundle_starts", "gather_cycles", "groups_of_bundle", "peel"]


def bundle_starts(rows: int, bundle_rows: int) -> range:
    """First row of every bundle; the last bundle may be shorter."""
    return range(0, rows, bundle_rows)


def gather_cycles(mask: Bools, bank: int, per_row: int) -> int:
    """Gathers that a mask (rows, columns) takes, bundle after bundle, each at most k from a row and one from a bank.

    The fewest possible, by Koenig: in each bundle the largest of all bank loads and of all rows' loads / k. Bank
    conflicts are what this exceeds weights / B by; a balanced pattern of full bundles has none. `per_row` = `bank`
    counts row by row.
    """
    cycles = 0
    for start in bundle_starts(len(mask), bank // per_row):
        bundle = mask[start : start + bank // per_row]
        cycles += max(int(bank_loads(bundle, bank).max()), -(-int(bundle.sum(axis=1).max()) // per_row))
    return cycles


def bank_loads(mask: Bools, bank: int) -> Ints:
    """(B,): weights in each bank."""
    columns = np.nonzero(mask)[1]
    return np.asarray(np.bincount(columns % bank, minlength=bank), dtype=np.int64)


def groups_of_bundle(bundle: Bools, bank: int, per_row: int) -> int:
    """G of one bundle (rows, columns); ModelError where its rows or banks are not balanced."""
    rows, loads = bundle.sum(axis=1), bank_loads(bundle, bank)
    groups = int(rows[0]) // per_row
    if (rows != per_row * groups).any() or (loads > groups).any():
        raise ModelError(
            f"cannot cut a mask into groups of GS({bank}, {per_row}): rows hold {rows.min()}..{rows.max()} weights and "
            f"banks {loads.min()}..{loads.max()}, need {per_row} * G in every row and G in every bank of a bundle; try "
            "Balanced.keep, or pass the mask where kept weights may be zero"
        )
    return groups


def peel(bundle: Bools, bank: int, per_row: int) -> tuple[Ints, Ints]:
    """(rows, columns), both (G, B): the weight that lane j (bank j) of each group reads; -1 for an idle lane.

    Every row is copied k times with G weights each. The bipartite multigraph of copies and banks is then G-regular
    (where a last bundle lacks rows, empty ones fill it up), so it has a perfect matching, and without it is regular
    again. Raises ModelError where the bundle (rows, columns) is not balanced.
    """
    groups = groups_of_bundle(bundle, bank, per_row)
    edges = _edges(bundle, bank, per_row, groups)
    counts = np.array([[len(columns) for columns in copy] for copy in edges]).reshape(bank, bank)
    rows, columns = (np.full((groups, bank), -1, dtype=np.int64) for _ in range(2))
    real = len(bundle) * per_row
    for group in range(groups):
        lanes = maximum_bipartite_matching(csr_array(counts > 0), perm_type="column")
        counts[np.arange(bank), lanes] -= 1
        for copy in range(real):
            lane = int(lanes[copy])
            rows[group, lane], columns[group, lane] = copy // per_row, edges[copy][lane].pop(0)
    return rows, columns


def _edges(bundle: Bools, bank: int, per_row: int, groups: int) -> list[list[list[int]]]:
    """[copy][lane] -> the columns that the copy of a row reads from the bank; those of empty rows are -1."""
    edges: list[list[list[int]]] = [[[] for _ in range(bank)] for _ in range(bank)]
    for row, kept in enumerate(bundle):
        for place, column in enumerate(np.flatnonzero(kept).tolist()):
            edges[row * per_row + place // groups][column % bank].append(column)
    first_empty = len(bundle) * per_row
    for place, lane in enumerate(np.repeat(np.arange(bank), groups - bank_loads(bundle, bank)).tolist()):
        edges[first_empty + place // groups][lane].append(-1)
    return edges
