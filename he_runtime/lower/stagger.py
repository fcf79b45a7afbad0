"""Staggered client input: copies of the input, each rotated further, so that one product serves several diagonals.

Slots that the input does not need are free copies of it. When copy k is rotated by k * step, the diagonal d of a layer
becomes the diagonal d - k * step of copy k, with k = (d // step) mod copies: fewer distinct diagonals, hence fewer
products and baby steps, for log2(copies) more folds. The client rotates its plaintext, which costs nothing. (Gazelle,
USENIX Security'18, section 4, packs copies side by side; here their offsets are chosen for the layer.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..layout import Layout
from .costs import Costs
from .diagonals import DiagonalSet, entry_positions, group_cells
from .maps import LinearMap

__all__ = ["StaggeredLayout", "proposals", "staggered_set"]

_PROPOSED = 3


@dataclass(frozen=True)
class StaggeredLayout:
    """`copies` blocks of `block` slots; block k holds the base layout's content rotated left by k * step.

    Only an input tensor of one ciphertext can have it, and only for one reader, whose output has a period of at most
    `block`: the copies' partial sums are folded onto it.
    """

    base: Layout
    block: int
    copies: int
    step: int

    @property
    def slots(self) -> int:
        return self.base.slots

    @property
    def span(self) -> int:
        return self.copies * self.block

    @property
    def period(self) -> int:
        return self.span

    @property
    def ciphertexts(self) -> int:
        return 1

    @cached_property
    def slot_map(self) -> npt.NDArray[np.int32]:
        position = np.arange(self.slots) % self.span
        source = (position % self.block + position // self.block * self.step) % self.base.period
        return self.base.slot_map[:, source]

    def describe(self) -> str:
        return f"{self.base.describe()}, {self.copies} copies staggered by {self.step}"


def staggered_set(map_: LinearMap, source: StaggeredLayout, target: Layout) -> DiagonalSet:
    """The diagonals that remain of `map_`, between the copies and the target; the folds add the copies up."""
    positions, wanted = entry_positions(map_, source.base, target)
    outputs, rows = positions // target.slots, positions % target.slots
    period = source.base.period
    diagonal = (wanted - rows) % min(period, target.period)
    copy = diagonal // source.step % source.copies
    if period >= target.period:
        inside = (wanted - copy * source.step) % period
    else:  # any replica in the block that the remaining diagonal reaches
        inside = (rows + diagonal - copy * source.step) % source.block
    columns = copy * source.block + inside
    if target.uniform:  # the first copy holds everything that a dot product needs
        single = np.isin(outputs, list(target.uniform))
        rows, columns = np.where(single, wanted, rows), np.where(single, wanted, columns)
    uniform = (frozenset[int](), target.uniform)
    return group_cells(outputs, rows, columns, 1, (source.period, target.period), uniform)


def proposals(found: DiagonalSet, base: Layout, target: Layout, costs: Costs, level: int) -> list[StaggeredLayout]:
    """The most promising staggerings of a layer whose diagonals with the plain base layout are `found`."""
    block = max(base.period, target.period)
    most = base.slots // block
    if base.ciphertexts > 1 or most < 2:
        return []
    diagonals = np.unique(found.cells[:, 2])
    ranked = []
    for copies in (2**k for k in range(1, most.bit_length())):
        for step in _steps(diagonals, found.modulus, copies):
            left = diagonals - diagonals // step % copies * step
            remaining = len(np.unique(left % found.modulus))
            folds = round(math.log2(copies * block / target.period))
            ranked.append((costs.guessed(remaining, folds, target.ciphertexts, level), copies, step))
    return [StaggeredLayout(base, block, copies, step) for _, copies, step in sorted(ranked)[:_PROPOSED]]


def _steps(diagonals: npt.NDArray[np.int64], modulus: int, copies: int) -> set[int]:
    """Powers of two, equal shares of all diagonals, and the distances that occur most between neighbours."""
    powers = {2**k for k in range(modulus.bit_length())}
    gaps, counts = np.unique(np.diff(diagonals), return_counts=True)
    common = gaps[np.argsort(-counts, kind="stable")[:4]].tolist()
    return {s for s in powers | {-(-modulus // copies), *common} if 0 < s < modulus}
