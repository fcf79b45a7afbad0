"""Generalized diagonals: a sparse linear map between two layouts as rotations, plaintext products and folds.

With x replicated at period p and output period q, let M = min(p, q). Entry (r, c) belongs to diagonal (c - r) mod M;
one plaintext of max(p, q) slots serves a whole diagonal. When q < p the product holds p/q partial sums, which
log2(p/q) rotate-and-adds fold; the result is again replicated, at no extra level. Over several ciphertexts, the
blocks of one output accumulate before its giant steps (hybrid diagonal method; Gazelle, USENIX Security'18, section 4,
and Halevi-Shoup, CRYPTO'14).

An element alone in its ciphertext has no diagonal. As an output it is a dot product: one product per input ciphertext,
folded down to period one. As an input it stands in every slot, so any operand reads it without a rotation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..layout import Layout
from .joint import JointLayout
from .maps import LinearMap
from .split import Split, best_split

__all__ = ["DiagonalSet", "PackedLinear", "diagonal_set", "fill", "pack"]

Ints = npt.NDArray[np.int64]
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class DiagonalSet:
    """Which diagonals a map occupies: one row of `cells` (output ct, input ct, diagonal mod `modulus`) per operand."""

    cells: Ints
    modulus: int
    input_period: int
    output_period: int
    entry_cell: Ints  # the cell of each matrix entry
    rows: Ints  # output slot of each matrix entry
    columns: Ints  # input slot of each matrix entry
    uniform_inputs: frozenset[int] = frozenset()  # ciphertexts of one element each
    uniform_outputs: frozenset[int] = frozenset()
    entries: Ints | None = None  # which of the map's entries each of these is, unless they are all, in order
    chain: tuple[int, ...] | None = None  # the folds, unless they halve the input's period down to the output's

    @property
    def folds(self) -> tuple[int, ...]:
        """Rotation steps of the rotate-and-add chain, largest first."""
        return _halvings(self.input_period, self.output_period) if self.chain is None else self.chain

    def of_entries(self, values: npt.NDArray[T]) -> npt.NDArray[T]:
        """Values per entry of the map -> per entry here."""
        return values if self.entries is None else values[self.entries]

    def folds_of(self, output: int) -> tuple[int, ...]:
        """The same of one output ciphertext: longer where that is one element."""
        return _halvings(self.input_period, 1) if output in self.uniform_outputs else self.folds

    @property
    def fold_steps(self) -> frozenset[int]:
        """The steps of all chains."""
        return frozenset(_halvings(self.input_period, 1) if self.uniform_outputs else self.folds)

    @property
    def split(self) -> Split:
        return self.split_at(1.0)

    def split_at(self, weight: float) -> Split:
        """The cheapest split where a giant step costs `weight` baby steps."""
        if weight not in self._splits:
            self._splits[weight] = self.best_split(frozenset(), weight)
        return self._splits[weight]

    @cached_property
    def _splits(self) -> dict[float, Split]:
        return {}

    def best_split(self, known: frozenset[int], weight: float = 1.0) -> Split:
        """The same when keys for the steps `known` (and for the folds) exist anyway."""
        turning = ~self.standing
        columns = (self.cells[turning, 2], self.cells[turning, 1], self.cells[turning, 0])
        found = best_split(*columns, self.modulus, known | self.fold_steps, weight)
        if turning.all():
            return found
        steps = np.zeros((2, len(self.cells)), dtype=np.int64)
        steps[:, turning] = found.baby, found.giant
        return replace(found, baby=steps[0], giant=steps[1])

    @property
    def standing(self) -> npt.NDArray[np.bool_]:
        """Per cell, whether it needs no rotation because its input or output is one element."""
        sides = ((0, self.uniform_outputs), (1, self.uniform_inputs))
        return np.logical_or(*(np.isin(self.cells[:, side], list(uniform)) for side, uniform in sides))

    @property
    def outputs(self) -> int:
        return len(np.unique(self.cells[:, 0]))

    @cached_property
    def rotations(self) -> int:
        """Rotations in all, folds included, without hoisting."""
        return self.split.rotations + self.fold_count

    @cached_property
    def fold_count(self) -> int:
        """Rotations of the rotate-and-add chains of all outputs."""
        return sum(len(self.folds_of(k)) for k in np.unique(self.cells[:, 0]).tolist())

    @property
    def products(self) -> int:
        """Plaintext products: one per occupied diagonal of each block."""
        return len(self.cells)


def _halvings(start: int, last: int) -> tuple[int, ...]:
    """start / 2, start / 4, .., last."""
    return tuple(start >> k for k in range(1, start.bit_length()) if start >> k >= last)


@dataclass(frozen=True)
class PackedLinear:
    """A packed map: cell k multiplies input `cells[k, 1]` rotated by `split.baby[k]` with `vectors[k]`.

    The sum over cells that share (output, giant) is rotated by the giant, then summed, then folded. `vectors` is
    (cells, period); `bias` is (output ciphertexts, output period).
    """

    diagonals: DiagonalSet
    split: Split
    vectors: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]


def diagonal_set(map_: LinearMap, source: Layout | JointLayout, target: Layout) -> DiagonalSet:
    """The diagonals that `map_` occupies between the two layouts; O(non-zeros)."""
    rows, columns = entry_positions(map_, source, target)
    periods, uniform = (source.period, target.period), (source.uniform, target.uniform)
    if source.ciphertexts == target.ciphertexts == 1:  # the usual case; entries may be millions
        return group_cells(None, rows, columns, 1, periods, uniform)
    slots = source.slots  # a power of two, so masks stand for remainders
    shift = slots.bit_length() - 1
    outputs, inputs = rows >> shift, columns >> shift
    rows, columns = rows & (slots - 1), columns & (slots - 1)
    if uniform[0]:
        columns = np.where(np.isin(inputs, list(uniform[0])), rows, columns)
    if uniform[1]:
        rows = np.where(np.isin(outputs, list(uniform[1])), columns, rows)
    block = outputs * source.ciphertexts + inputs
    return group_cells(block, rows, columns, source.ciphertexts, periods, uniform)


def entry_positions(map_: LinearMap, source: Layout | JointLayout, target: Layout) -> tuple[Ints, Ints]:
    """The flat positions of each weight's output and input, in the order of `matrix.data`."""
    return np.repeat(target.positions, np.diff(map_.matrix.indptr)), source.positions[map_.matrix.indices]


def group_cells(
    block: Ints | None,
    rows: Ints,
    columns: Ints,
    inputs: int,
    periods: tuple[int, int],
    uniform: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset()),
) -> DiagonalSet:
    """Entries (their block = output * inputs + input, if not all 0; row slot, column slot) -> the cells that they occupy.

    `periods` are those of input and output, powers of two; diagonals are counted modulo the smaller. `uniform` are the
    input and output ciphertexts of one element; entries of these have the same slot as row and column.
    """
    modulus = min(periods)
    key = (columns - rows) & (modulus - 1)
    if block is not None:
        key += block * modulus
    occupied = np.zeros(int(key.max(initial=-1)) + 1, dtype=bool)
    occupied[key] = True  # a table of all possible keys is small, and sorting millions of entries is slow
    unique, entry_cell = np.flatnonzero(occupied), (np.cumsum(occupied) - 1)[key]
    blocks, diagonals = unique // modulus, unique % modulus
    cells = np.stack([blocks // inputs, blocks % inputs, diagonals], axis=1)
    return DiagonalSet(cells.astype(np.int64), modulus, *periods, entry_cell, rows, columns, *uniform)


def pack(
    map_: LinearMap,
    target: Layout,
    diagonals: DiagonalSet,
    known: frozenset[int] = frozenset(),
    weight: float = 1.0,
) -> PackedLinear:
    """Fill the plaintext vectors, already rotated back by their giant step. Every weight is used exactly once.

    Among splits of equal cost the one that needs the fewest steps beyond `known` is taken.
    """
    return fill(map_, target, diagonals, diagonals.best_split(known, weight))


def fill(map_: LinearMap, target: Layout, diagonals: DiagonalSet, split: Split) -> PackedLinear:
    """The same at a split that is known; the map's entries are those that `diagonals` was made of, in their order."""
    period = max(diagonals.input_period, diagonals.output_period)
    giant, baby = split.giant[diagonals.entry_cell], split.baby[diagonals.entry_cell]
    if diagonals.output_period < diagonals.input_period:
        slot = (diagonals.columns - baby) % period
    else:
        slot = (diagonals.rows + giant) % period
    vectors = np.zeros((len(diagonals.cells), period))
    vectors[diagonals.entry_cell, slot] = diagonals.of_entries(map_.matrix.data)
    for cell in np.flatnonzero(np.isin(diagonals.cells[:, 0], list(diagonals.uniform_outputs))):
        vectors[cell] = np.resize(
            vectors[cell, : diagonals.input_period], period
        )  # folded over the input's period only
    return PackedLinear(diagonals, split, vectors, target.spread(map_.bias))
