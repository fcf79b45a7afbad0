"""Gathered client input: every output of the first linear layer finds the inputs that it reads in its own slot.

A layer whose longest row has W non-zeros takes W steps: in step t, slot r holds the t-th input that output r reads. Steps
lie side by side in a ciphertext, as far as it has slots, so the layer is one product per ciphertext and log2(steps in a
ciphertext) folds, with no diagonals at all. This is the padded (ELLPACK) form of a sparse matrix, gathered by the one who
has the input in the clear; rows of equal length waste nothing. The gather tells the client which inputs each output reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..layout import Layout
from .diagonals import DiagonalSet, group_cells
from .maps import LinearMap

__all__ = ["GatheredLayout", "gathered", "gathered_set"]

Ints = npt.NDArray[np.int64]
_MOST_CIPHERTEXTS = 64  # that a query should upload; the price of an upload is the server's part of it only


@dataclass(frozen=True, eq=False)
class GatheredLayout:
    """Inputs by the rows of `map` that read them, in blocks laid out like `target`, the layer's output.

    Only an input tensor can have it, and only for the one layer that reads it. Inputs that no row reads lie nowhere.
    """

    map: LinearMap
    target: Layout

    @property
    def slots(self) -> int:
        return self.target.slots

    @cached_property
    def row_lengths(self) -> Ints:
        """(outputs,): how many inputs each reads."""
        return np.asarray(np.diff(self.map.matrix.indptr), dtype=np.int64)

    @cached_property
    def steps(self) -> int:
        """The length of the longest row."""
        return int(self.row_lengths.max(initial=0))

    @cached_property
    def together(self) -> int:
        """Steps in a ciphertext: a power of two."""
        return int(min(self.slots // self.target.period, 1 << max(0, self.steps - 1).bit_length()))

    @property
    def period(self) -> int:
        return self.together * self.target.period

    @cached_property
    def _firsts(self) -> Ints:
        """(output ciphertexts + 1,): the first input ciphertext of each output ciphertext, and the count of all."""
        longest = np.zeros(self.target.ciphertexts, dtype=np.int64)
        np.maximum.at(longest, self.target.positions // self.slots, self.row_lengths)
        return np.concatenate([[0], np.cumsum(-(-longest // self.together))])

    @property
    def ciphertexts(self) -> int:
        return int(self._firsts[-1])

    @cached_property
    def places(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Of each entry of the map: output ciphertext and slot, input ciphertext and slot (within the period)."""
        lengths = self.row_lengths
        position = np.repeat(self.target.positions, lengths)
        step = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        output, row = position // self.slots, position % self.slots
        column = step % self.together * self.target.period + row
        return output, row, self._firsts[output] + step // self.together, column

    @cached_property
    def slot_map(self) -> npt.NDArray[np.int32]:
        _, _, ciphertext, column = self.places
        base = np.full((self.ciphertexts, self.period), -1, dtype=np.int32)
        base[ciphertext, column] = self.map.matrix.indices
        return np.tile(base, self.slots // self.period)

    def describe(self) -> str:
        return (
            f"{self.map.matrix.shape[1]} inputs gathered by the client, {self.steps} per output, {self.together} steps "
            f"in each of {self.ciphertexts} ct; it learns which inputs each output reads"
        )


def gathered(map_: LinearMap, target: Layout, most: int) -> GatheredLayout | None:
    """The gather of a layer for a layout of its output; None where it is of no use or takes more ciphertexts than `most`.

    A row that stands alone is a dot product, which has no slot of its own to gather at.
    """
    if target.alone or target.slots == 1 or not map_.matrix.nnz:
        return None
    found = GatheredLayout(map_, target)
    return found if found.ciphertexts <= min(most, _MOST_CIPHERTEXTS) else None


def gathered_set(source: GatheredLayout) -> DiagonalSet:
    """One product per input ciphertext, unrotated; the folds add the steps up."""
    output, row, ciphertext, column = source.places
    block = output * source.ciphertexts + ciphertext
    return group_cells(block, row, column, source.ciphertexts, (source.period, source.target.period))
