"""The first layer with a gathered input: any weights may stay, as long as every row keeps equally many.

The client packs what each output reads into the output's own slot, so the layer costs one product per ciphertext and the
folds over the steps in it (he_runtime.lower.gather); the price depends on the longest row alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from he_runtime.layout import Layout
from he_runtime.lower.costs import Costs
from he_runtime.lower.gather import GatheredLayout, gathered_set
from he_runtime.lower.maps import LinearMap

from .layer import Choice, loss_of

__all__ = ["Fixed", "RowLayer", "row_layer"]

Floats = npt.NDArray[np.float64]
MOST_UPLOADS = 8


@dataclass(frozen=True)
class RowLayer:
    """`ms[k]` is the price of `lengths[k]` weights in each row (lengths ascending)."""

    lengths: tuple[int, ...]
    ms: tuple[float, ...]

    @property
    def ways(self) -> int:
        """Paths."""
        return len(self.lengths)

    @property
    def least_ms(self) -> float:
        return self.ms[0]

    def cheapest(self, energy: Floats) -> Choice:
        """The shortest rows."""
        return self.paths(energy)[0].choice

    def paths(self, energy: Floats) -> list[Fixed]:
        """The strongest weights of each row, at every length; `energy` (out, in) is the saliency of each weight.

        Ends and no ways down: short rows save folds two by two, so a descent would run past every length between.
        """
        order = np.argsort(-energy, axis=1, kind="stable")
        kept = np.cumsum(np.take_along_axis(energy, order, axis=1).sum(axis=0))
        found = []
        for length, ms in zip(self.lengths, self.ms, strict=True):
            keep = np.zeros(energy.shape, dtype=np.bool_)
            np.put_along_axis(keep, order[:, :length], True, axis=1)
            found.append(Fixed(Choice(keep, ms, loss_of(float(kept[length - 1]), float(kept[-1])))))
        return found


@dataclass(frozen=True)
class Fixed:
    """A path that is at its end."""

    choice: Choice
    ratio: float = np.inf

    @property
    def ms(self) -> float:
        return self.choice.ms

    def step(self) -> None:
        raise AssertionError("a path at its end takes no step")


def row_layer(shape: tuple[int, ...], target: Layout, costs: Costs, level: int) -> RowLayer | None:
    """The gathers of a dense layer of `shape` (out, in) for its output's layout; None where it has none."""
    if len(shape) != 2 or target.alone or target.slots == 1 or target.ciphertexts > 1:
        return None
    together = target.slots // target.period
    powers = [2**k for k in range(together.bit_length())]
    lengths = [n for n in (*powers, *(k * together for k in range(2, MOST_UPLOADS + 1))) if n < shape[1]]
    ms = [_ms(_gather(shape, length, target), costs, level) for length in lengths]
    return RowLayer(tuple(lengths), tuple(ms)) if lengths else None


def _ms(layout: GatheredLayout, costs: Costs, level: int) -> float:
    """Of the layer, and of taking in what is uploaded beyond one ciphertext."""
    return 1e3 * (costs.linear(gathered_set(layout), level) + costs.border(layout.ciphertexts - 1, level))


def _gather(shape: tuple[int, ...], length: int, target: Layout) -> GatheredLayout:
    """Any gather with rows of that length: the price asks for no more."""
    matrix = sp.csr_array(
        (np.ones(shape[0] * length), np.tile(np.arange(length), shape[0]), np.arange(shape[0] + 1) * length), shape
    )
    return GatheredLayout(LinearMap(matrix, np.zeros(shape[0])), target)
