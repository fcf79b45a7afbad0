"""Which weights of one bundle stay: the transportation problem behind the GS patterns of Sun et al., arXiv 2112.10898.

Every row of the bundle ships k * G units, every bank takes G (at most G where the bundle has fewer rows than a full
one), every weight carries 0 or 1. The constraint matrix is totally unimodular, so a vertex of the linear program is
integral.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array, vstack

from .layer import Bools, Floats, Ints

__all__ = ["exact_selection", "greedy_selection"]


def exact_selection(energy: Floats, bank: int, per_row: int, groups: int) -> Bools:
    """The (rows, columns) mask of most energy with k * G weights per row and G per bank.

    Solved by HiGHS (dual simplex, hence a vertex). Its tolerance is absolute, so energies are scaled to at most 1, and
    the greedy answer is taken where it is as good.
    """
    greedy = greedy_selection(energy, bank, per_row, groups)
    rows, columns = energy.shape
    largest = float(energy.max())
    if not largest:
        return greedy
    entries = np.arange(energy.size)
    ones = np.ones(energy.size)
    by_row = csr_array((ones, (entries // columns, entries)), shape=(rows, energy.size))
    by_bank = csr_array((ones, (entries % columns % bank, entries)), shape=(bank, energy.size))
    full = rows * per_row == bank
    result = linprog(
        -energy.ravel() / largest,
        A_ub=None if full else by_bank,
        b_ub=None if full else np.full(bank, groups),
        A_eq=vstack([by_row, by_bank]) if full else by_row,
        b_eq=np.repeat([per_row * groups, groups], [rows, bank]) if full else np.full(rows, per_row * groups),
        bounds=(0, 1),
        method="highs-ds",
    )
    if result.status != 0:  # numerically in trouble; the greedy answer is allowed
        return greedy
    mask = np.asarray(result.x.reshape(energy.shape) > 0.5, dtype=np.bool_)
    if not _balanced(mask, bank, per_row, groups) or energy[greedy].sum() >= energy[mask].sum():
        return greedy
    return mask


def greedy_selection(energy: Floats, bank: int, per_row: int, groups: int) -> Bools:
    """A mask with the same counts: the strongest weights first while row and bank have room, then repair.

    What greed leaves open is filled along augmenting paths: a row with room takes a weight in a full bank, whose other
    row gives one up there and looks on, until a bank with room is reached.
    """
    rows = len(energy)
    mask = np.zeros(energy.shape, dtype=np.bool_)
    row_room, bank_room = np.full(rows, per_row * groups), np.full(bank, groups)
    open_slots = rows * per_row * groups
    row_of, column_of = np.unravel_index(np.argsort(-energy, axis=None, kind="stable"), energy.shape)
    for row, column in zip(row_of.tolist(), column_of.tolist(), strict=True):
        lane = column % bank
        if row_room[row] and bank_room[lane]:
            mask[row, column] = True
            row_room[row] -= 1
            bank_room[lane] -= 1
            open_slots -= 1
            if not open_slots:
                break
    for row in np.repeat(np.arange(rows), row_room).tolist():
        _augment(mask, energy, bank, bank_room, row)
    return mask


def _augment(mask: Bools, energy: Floats, bank: int, bank_room: Ints, start: int) -> None:
    """One more weight in row `start` and in some bank with room, by a shortest alternating path."""
    rows = len(mask)
    from_row, from_bank = np.full(bank, -1), np.full(rows, -1)
    queue, seen = deque([start]), {start}
    while queue:
        row = queue.popleft()
        for lane in range(bank):
            if from_row[lane] >= 0 or mask[row, lane::bank].all():
                continue
            from_row[lane] = row
            if bank_room[lane]:
                _flip(mask, energy, bank, from_row, from_bank, lane)
                bank_room[lane] -= 1
                return
            for other in np.flatnonzero(mask[:, lane::bank].any(axis=1)).tolist():
                if other not in seen:
                    seen.add(other)
                    from_bank[other] = lane
                    queue.append(other)
    raise AssertionError("a balanced bundle always has an augmenting path")  # G is within the capacity of every bank


def _flip(mask: Bools, energy: Floats, bank: int, from_row: Ints, from_bank: Ints, lane: int) -> None:
    """Walk the path back: each row on it takes its best free weight of one bank and gives up its worst of another."""
    while lane >= 0:
        row = int(from_row[lane])
        free = np.where(mask[row, lane::bank], -np.inf, energy[row, lane::bank])
        mask[row, lane + bank * int(np.argmax(free))] = True
        lane = int(from_bank[row])
        if lane >= 0:
            held = np.where(mask[row, lane::bank], energy[row, lane::bank], np.inf)
            mask[row, lane + bank * int(np.argmin(held))] = False


def _balanced(mask: Bools, bank: int, per_row: int, groups: int) -> bool:
    load = np.array([mask[:, lane::bank].sum() for lane in range(bank)])
    return bool((mask.sum(axis=1) == per_row * groups).all() and (load <= groups).all())
