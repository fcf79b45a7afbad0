"""Pitched copies: a hidden layer whose output is summed up from copies of the input that it meets at different offsets.

A tensor of one ciphertext fills the slots with copies of itself, `period` apart. Let a layer put its partial outputs into
L lanes `pitch` slots apart, where the pitch is an odd multiple of g = period / L. Lane k then meets the input moved on by
k * pitch, and over all lanes these offsets are the multiples of g: every diagonal d becomes the diagonal d mod g of one
lane. So at most g products and g - 1 rotations remain of a dense layer, and log2(L) folds by the pitch add the lanes up:
128x128 on 8192 slots takes 4 products and 8 rotations instead of 128 and about 22.

The sum of L lanes is complete where it starts at a lane with L - 1 others behind it; other slots hold partial sums. What is
complete are copies of the output, a pitch apart, and the layer that reads them may choose among the copies: diagonal d
becomes d + k * pitch in copy k, so its diagonals merge as well. It folds over all slots and leaves no partial sums.

Like the staggered copies of a client's input (stagger.py), but made by where lanes lie instead of by the client; the
hybrid diagonals of Gazelle (USENIX Security'18, section 4) are the case of one lane per copy and a pitch of the period.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..layout import Layout
from .costs import Costs
from .diagonals import DiagonalSet, entry_positions, group_cells
from .maps import LinearMap

__all__ = ["PitchedLayout", "lanes_of", "pitched", "pitches", "proposals", "read_set", "writable", "write_set"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
T = TypeVar("T", bound=np.generic)
_PROPOSED = 4
_PITCHES = 2  # of each number of lanes


@dataclass(frozen=True)
class PitchedLayout(Layout):
    """A tensor of one ciphertext whose copies lie `pitch` slots apart, from slot 0 on; other slots hold partial sums.

    Only what one linear stage makes, activations of degree two follow and linear stages read can have it: partial sums
    stay of the size of sums then, and nothing reads them.
    """

    pitch: int = 0
    copies: int = 1

    @cached_property
    def span(self) -> int:
        return self.slots

    @cached_property
    def extent(self) -> int:
        """Slots of one copy."""
        return _extent(self)

    def rows(self, values: npt.NDArray[T], padding: float) -> npt.NDArray[T]:
        """Elements (size,) -> (1, slots), every copy."""
        row = np.full(self.slots, padding, dtype=values.dtype)
        row[self._places(self.copies)] = values
        return row[None]

    def spread(self, values: Floats) -> Floats:
        """The same with zeros between, unless all values are equal: partial sums may have that value too."""
        constant = values.size > 0 and bool((values == values[0]).all())
        return np.full((1, self.slots), values[0]) if constant else self.rows(values, 0.0)

    @property
    def likeness(self) -> npt.NDArray[np.int32]:
        """`slot_map` with the elements of a copy in all lanes: partial sums are taken to be of their size."""
        row: npt.NDArray[np.int32] = np.full(self.slots, -1, dtype=np.int32)
        row[self._places((self.slots - self.extent) // self.pitch + 1)] = np.arange(self.size, dtype=np.int32)
        return row[None]

    def _places(self, copies: int) -> Ints:
        """(copies, size): the slots of every element."""
        return np.asarray(self.positions + self.pitch * np.arange(copies)[:, None])

    def describe(self) -> str:
        return f"{self._base.describe()}, {self.copies} copies {self.pitch} apart"

    @property
    def _base(self) -> Layout:
        return Layout(self.shape, self.axes, self.slots, self.plane, self.gap)


def pitched(base: Layout, pitch: int, lanes: int) -> PitchedLayout | None:
    """The base layout with as many copies as are complete after a sum of `lanes`; None where none is."""
    extent = _extent(base)
    copies = (base.slots - extent) // pitch + 2 - lanes
    if copies < 1 or extent > pitch:
        return None
    return PitchedLayout(base.shape, base.axes, base.slots, base.plane, base.gap, pitch=pitch, copies=copies)


def lanes_of(source: Layout, target: PitchedLayout) -> int:
    return source.period // math.gcd(source.period, target.pitch)


def writable(source: object, target: PitchedLayout) -> bool:
    """Whether a layer can sum up the target from the copies of its input."""
    if not isinstance(source, Layout) or isinstance(source, PitchedLayout) or not _repeats(source):
        return False
    lanes = lanes_of(source, target)
    return lanes > 1 and (target.copies + lanes - 2) * target.pitch + target.extent <= target.slots


def write_set(map_: LinearMap, source: Layout, target: PitchedLayout) -> DiagonalSet:
    """What remains of the diagonals between a repeated input and the lanes of a pitched output, and the folds by its pitch.

    Every weight has a place in each lane that belongs to a copy: entries repeat.
    """
    rows, columns = entry_positions(map_, source, target)
    period, lanes = source.period, lanes_of(source, target)
    step = period // lanes
    diagonal = (columns - rows) % period
    lane = diagonal // step * _inverse(target.pitch // step, lanes) % lanes
    filled = target.copies + lanes - 1
    lane = lane + lanes * np.arange(-(-filled // lanes))[:, None]
    entries = np.broadcast_to(np.arange(len(rows)), lane.shape)[lane < filled]
    places = (lane * target.pitch + rows)[lane < filled]
    found = group_cells(None, places, places + (diagonal % step)[entries], 1, (source.slots, target.slots))
    chain = tuple(target.pitch << k for k in reversed(range(lanes.bit_length() - 1)))
    return replace(found, entries=entries, chain=chain)


def read_set(map_: LinearMap, source: PitchedLayout, target: Layout) -> DiagonalSet:
    """The diagonals that remain between the copies and a plain target; the folds go over all slots."""
    rows, columns = entry_positions(map_, source, target)
    outputs, rows = rows // target.slots, rows % target.slots
    copy = _copies((columns - rows) % target.period, source, target.period)
    if target.uniform:  # the first copy holds everything that a dot product needs
        single = np.isin(outputs, list(target.uniform))
        copy = np.where(single, 0, copy)
        rows = np.where(single, columns, rows)
    columns = columns + copy * source.pitch
    uniform = (frozenset[int](), target.uniform)
    return group_cells(outputs, rows, columns, 1, (source.slots, target.period), uniform)


def _copies(diagonal: Ints, source: PitchedLayout, period: int) -> Ints:
    """The copy that each weight reads, so that few diagonals (modulo `period`) remain."""
    step = math.gcd(source.pitch, period)
    cycle = period // step
    if source.copies >= cycle:  # the copies reach every multiple of the step
        return -(diagonal // step) * _inverse(source.pitch // step, cycle) % cycle
    occupied = np.unique(diagonal)
    ways = [np.zeros_like(occupied), *_strides(occupied, source, period)]
    best = min(ways, key=lambda copy: len(np.unique((occupied + copy * source.pitch) % period)))
    return np.asarray(best[np.searchsorted(occupied, diagonal)])


def _strides(diagonals: Ints, source: PitchedLayout, period: int) -> Iterator[Ints]:
    """Every copy, every other one, ..: runs of as many diagonals, a stride apart, meet at the end of the run or at its start."""
    for stride in (2**k for k in range(source.copies.bit_length())):
        count, forth = (source.copies - 1) // stride + 1, source.pitch * stride % period
        if forth:
            yield (count - 1 - diagonals // forth % count) * stride
            yield diagonals // (period - forth) % count * stride


def _inverse(number: int, modulus: int) -> int:
    return pow(number, -1, modulus) if modulus > 1 else 0


def proposals(
    map_: LinearMap, source: Layout, bases: Sequence[Layout], costs: Costs, level: int
) -> list[PitchedLayout]:
    """The most promising pitches for the output of a layer, for the present layout of its input."""
    ranked: list[tuple[float, int, PitchedLayout]] = []
    for base in bases:
        targets = pitches(source, base)
        if not targets:
            continue
        rows, columns = entry_positions(map_, source, base)
        diagonals = np.unique((columns - rows) & (source.period - 1))
        for target in targets:
            lanes = lanes_of(source, target)
            left = len(np.unique(diagonals % (source.period // lanes)))
            price = costs.guessed(left, lanes.bit_length() - 1, 1, level)
            ranked.append((price, -target.copies, target))
    return [target for _, _, target in sorted(ranked, key=lambda r: r[:2])[:_PROPOSED]]


def pitches(source: Layout, base: Layout) -> list[PitchedLayout]:
    """For every number of lanes the narrowest pitches that hold the base layout; none where the input has no copies."""
    if base.ciphertexts > 1 or base.uniform or not _repeats(source):
        return []
    found = []
    for lanes in (2**k for k in range(1, source.period.bit_length())):
        step = source.period // lanes
        first = -(-_extent(base) // step) | 1
        found += [pitched(base, (first + 2 * k) * step, lanes) for k in range(_PITCHES)]
    return [x for x in found if x is not None]


def _repeats(source: Layout) -> bool:
    """Whether it is one ciphertext with copies."""
    return source.ciphertexts == 1 and not source.uniform and source.period < source.slots


def _extent(layout: Layout) -> int:
    """Slots up to the last element."""
    return int(layout.positions.max(initial=0)) + 1
