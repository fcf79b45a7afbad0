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

from .layer import Choice

__all__ = ["RowLayer", "RowPath", "row_layer"]

Floats = npt.NDArray[np.float64]
MOST_UPLOADS = 8


@dataclass(frozen=True)
class RowLayer:
    """`ms[k]` is the price of `lengths[k]` weights in each row (lengths ascending)."""

    lengths: tuple[int, ...]
    ms: tuple[float, ...]

    @property
    def least_ms(self) -> float:
        return self.ms[0]

    def path(self, energy: Floats) -> RowPath:
        """The ways down from the longest rows; `energy` (out, in) is the saliency of each weight."""
        return RowPath(self, energy)


class RowPath:
    """A layer on its way down, to whichever shorter rows lose least saliency per millisecond saved."""

    def __init__(self, layer: RowLayer, energy: Floats) -> None:
        self._layer = layer
        self._order = np.argsort(-energy, axis=1, kind="stable")
        kept = np.cumsum(np.take_along_axis(energy, self._order, axis=1).sum(axis=0))
        self._lost = [float(kept[-1] - kept[length - 1]) for length in layer.lengths]
        self._at = int(np.argmin(self._lost))

    @property
    def ms(self) -> float:
        return self._layer.ms[self._at]

    @property
    def ratio(self) -> float:
        """Saliency per millisecond of the next step; infinite at the shortest rows."""
        return min(self._ratios(), default=np.inf)

    def step(self) -> None:
        self._at = int(np.argmin(self._ratios()))

    @property
    def choice(self) -> Choice:
        length = self._layer.lengths[self._at]
        keep = np.zeros(self._order.shape, dtype=np.bool_)
        np.put_along_axis(keep, self._order[:, :length], True, axis=1)
        return Choice(keep, self.ms, self._lost[self._at])

    def _ratios(self) -> list[float]:
        """Of each shorter length; infinite where it saves nothing."""
        here, ms = self._lost[self._at], self.ms
        return [
            (self._lost[k] - here) / (ms - self._layer.ms[k]) if self._layer.ms[k] < ms else np.inf
            for k in range(self._at)
        ]


def row_layer(shape: tuple[int, ...], target: Layout, costs: Costs, level: int) -> RowLayer | None:
    """The gathers of a dense layer of `shape` (out, in) for its output's layout; None where it has none."""
    if len(shape) != 2 or target.alone or target.slots == 1 or target.ciphertexts > 1:
        return None
    together = target.slots // target.period
    powers = [2**k for k in range(together.bit_length())]
    lengths = [n for n in (*powers, *(k * together for k in range(2, MOST_UPLOADS + 1))) if n < shape[1]]
    ms = [1e3 * costs.linear(gathered_set(_gather(shape, length, target)), level) for length in lengths]
    return RowLayer(tuple(lengths), tuple(ms)) if lengths else None


def _gather(shape: tuple[int, ...], length: int, target: Layout) -> GatheredLayout:
    """Any gather with rows of that length: the price asks for no more."""
    matrix = sp.csr_array(
        (np.ones(shape[0] * length), np.tile(np.arange(length), shape[0]), np.arange(shape[0] + 1) * length), shape
    )
    return GatheredLayout(LinearMap(matrix, np.zeros(shape[0])), target)
