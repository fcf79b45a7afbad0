"""Quantizers as projections onto sets of levels, in NumPy.

Every quantizer has `project(values, mask=None) -> Quantized`. With a mask, pruned weights (False) stay exactly zero and
zero is no level for the others (prune first, quantize the survivors); without one, every weight may take every level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from he_runtime.errors import ModelError

__all__ = [
    "AlphaQ",
    "Asymmetric",
    "Binary",
    "DeviceLevels",
    "PowerOfTwo",
    "Quantized",
    "Quantizer",
    "Symmetric",
    "Ternary",
]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_ROUNDS = 6  # of the alternation between levels and scale
_STARTS, _CELLS = 128, 2**20  # first scales of a kind, and starts x levels (memory of the fit), at most


@dataclass(frozen=True)
class Quantized:
    """Levels (integers) and what they mean: `values` = scale * (levels - zero_point).

    With a `codebook`, a level k means sign(k) * codebook[|k|] in place of k, codebook[0] being 0.
    """

    levels: Ints
    scale: float
    zero_point: int = 0
    codebook: Floats | None = field(default=None, repr=False)

    @property
    def values(self) -> Floats:
        """The real values, float64, in the shape of the levels."""
        if self.codebook is None:
            return np.asarray(self.scale * (self.levels - self.zero_point), dtype=np.float64)
        return np.asarray(self.scale * np.sign(self.levels) * self.codebook[np.abs(self.levels)], dtype=np.float64)

    def compact(self) -> npt.NDArray[np.signedinteger[Any]]:
        """The levels in the smallest signed integers that hold them."""
        largest = int(np.abs(self.levels).max(initial=0))
        return self.levels.astype(np.int8 if largest < 2**7 else np.int16 if largest < 2**15 else np.int32)


class Quantizer(ABC):
    """A set of levels and the projection onto it; the scale is per tensor."""

    def project(self, values: npt.ArrayLike, mask: Bools | None = None) -> Quantized:
        """The nearest values on the grid; ModelError where values are not finite or the mask has another shape."""
        array = np.asarray(values, dtype=np.float64)
        if not np.isfinite(array).all():
            raise ModelError(
                "cannot quantize: got NaN or infinite values, need finite ones; try a smaller learning rate"
            )
        if mask is not None and mask.shape != array.shape:
            raise ModelError(f"cannot quantize: got a mask of shape {mask.shape}, need {array.shape}")
        return self._project(array, mask)

    @abstractmethod
    def _project(self, values: Floats, mask: Bools | None) -> Quantized: ...


@dataclass(frozen=True)
class Symmetric(Quantizer):
    """Integers in -(2^(bits-1) - 1)..2^(bits-1) - 1, step max|w| / (2^(bits-1) - 1), zero point 0."""

    bits: int = 8

    def __post_init__(self) -> None:
        _require_bits(self.bits, 2, 16)

    def _project(self, values: Floats, mask: Bools | None) -> Quantized:
        limit = 2 ** (self.bits - 1) - 1
        alive = values if mask is None else values[mask]
        step = float(np.abs(alive).max(initial=0.0)) / limit or 1.0
        levels = np.clip(np.rint(values / step), -limit, limit).astype(np.int64)
        if mask is not None:
            levels = np.where(mask, np.where(levels == 0, np.where(values < 0, -1, 1), levels), 0)
        return Quantized(levels, step)


@dataclass(frozen=True)
class Asymmetric(Quantizer):
    """Integers in 0..2^bits - 1 with a zero point: step (max - min) / (2^bits - 1), zero point round(-min / step).

    The range always contains zero, so that zero is exact. For activations, `grid` takes an observed range.
    """

    bits: int = 8

    def __post_init__(self) -> None:
        _require_bits(self.bits, 2, 16)

    def grid(self, low: float, high: float) -> tuple[float, int]:
        """(step, zero point) of the range low..high, widened to contain zero."""
        low, high = min(low, 0.0), max(high, 0.0)
        step = (high - low) / (2**self.bits - 1) or 1.0
        return step, round(-low / step)

    def _project(self, values: Floats, mask: Bools | None) -> Quantized:
        alive = values if mask is None else values[mask]
        step, zero = self.grid(float(alive.min(initial=0.0)), float(alive.max(initial=0.0)))
        top = 2**self.bits - 1
        levels = np.clip(np.rint(values / step) + zero, 0, top).astype(np.int64)
        if mask is not None:
            upwards = np.where(values < 0, zero == 0, zero < top)
            levels = np.where(levels == zero, zero + np.where(upwards, 1, -1), levels)
            levels = np.where(mask, levels, zero)
        return Quantized(levels, step, zero)


@dataclass(frozen=True)
class AlphaQ(Quantizer):
    """Levels alpha * {-q..q}, q = 2^(bits-1) - 1, with alpha fitted: ADMM's projection (Ye et al., arXiv 1903.09769).

    Levels and alpha are optimized in turn, alpha = <w, Q> / <Q, Q>, from many first alphas, of which the best end is
    kept: a single start at mean|w| / (q / 2) ends in a clipped local optimum at 8 bits.
    """

    bits: int = 8

    def __post_init__(self) -> None:
        _require_bits(self.bits, 2, 16)

    def _project(self, values: Floats, mask: Bools | None) -> Quantized:
        magnitudes = np.arange(1.0, 2 ** (self.bits - 1))
        scale = _fitted(values, magnitudes, mask)
        return Quantized(_signed(values, magnitudes, scale, mask), scale)


@dataclass(frozen=True)
class PowerOfTwo(Quantizer):
    """Levels 0 and +-2^0..+-2^(n-1), n = 2^(bits-1) - 1, times a fitted scale; the integers are the powers themselves."""

    bits: int = 4

    def __post_init__(self) -> None:
        _require_bits(self.bits, 2, 5)

    def _project(self, values: Floats, mask: Bools | None) -> Quantized:
        powers = 2 ** np.arange(2 ** (self.bits - 1) - 1)
        scale = _fitted(values, powers.astype(np.float64), mask)
        index = _signed(values, powers.astype(np.float64), scale, mask)
        return Quantized(np.sign(index) * np.concatenate([[0], powers])[np.abs(index)], scale)


@dataclass(frozen=True)
class Binary(Quantizer):
    """+-alpha with alpha = mean|w|: exact least squares. Zero counts as positive; there is no zero but by the mask."""

    def _project(self, values: Floats, mask: Bools | None) -> Quantized:
        alive = np.abs(values if mask is None else values[mask])
        signs = np.where(values < 0, -1, 1)
        levels = signs if mask is None else np.where(mask, signs, 0)
        return Quantized(np.asarray(levels, dtype=np.int64), float(alive.mean()) if alive.size else 0.0)


@dataclass(frozen=True)
class Ternary(Quantizer):
    """-alpha, 0, +alpha with the best of all alphas; the threshold is alpha / 2. With a mask it is `Binary`.

    If the k largest |w| are not zero, alpha is their mean and the squared error falls by (their sum)^2 / k: the best k
    is found by trying all.
    """

    def _project(self, values: Floats, mask: Bools | None) -> Quantized:
        if mask is not None:
            return Binary()._project(values, mask)
        descending = np.sort(np.abs(values).ravel())[::-1]
        if not descending.size or not descending[0]:
            return Quantized(np.zeros(values.shape, dtype=np.int64), 1.0)
        sums, counts = np.cumsum(descending), np.arange(1, descending.size + 1)
        scale = float((sums / counts)[np.argmax(sums**2 / counts)])
        return Quantized(_signed(values, np.ones(1), scale, None), scale)


@dataclass(frozen=True)
class DeviceLevels(Quantizer):
    """What a memristor holds: 2^bits conductances, evenly spaced in low..high siemens (Yuan et al., arXiv 1908.11691).

    mode "pair": a weight is the difference of two devices, the levels are k * (high - low) / (2^bits - 1) for
    k = -(2^bits - 1)..2^bits - 1. mode "single": one device and a sign, |w| is one of the 2^bits conductances, so that
    zero exists only through pruning and a small weight becomes `low`. Values are scale * conductance, the scale is
    fitted. In "single", level +-(j + 1) is the j-th conductance.
    """

    bits: int = 4
    mode: str = "pair"
    low: float = 1 / 3e6
    high: float = 1 / 3e3

    def __post_init__(self) -> None:
        _require_bits(self.bits, 1, 12)
        if self.mode not in ("pair", "single"):
            raise ModelError(f"cannot use devices in mode {self.mode!r}: need 'pair' or 'single'")
        if not 0 < self.low < self.high:
            raise ModelError(f"cannot use conductances {self.low:g}..{self.high:g}: need 0 < low < high")

    @property
    def conductances(self) -> Floats:
        """(2^bits,) siemens, ascending."""
        return np.linspace(self.low, self.high, 2**self.bits)

    def devices(self, quantized: Quantized) -> tuple[Floats, Floats]:
        """Conductances (siemens) of the positive and the negative device of each weight; 0 is an absent device.

        weight = scale * (positive - negative). In a pair the idle device is at `low`, as both are where the weight is
        zero; in "single" a pruned weight has no device.
        """
        magnitude = np.abs(quantized.levels)
        if self.mode == "pair":
            active, idle = self.conductances[magnitude], self.low
        else:
            active, idle = np.concatenate([[0.0], self.conductances])[magnitude], 0.0
        positive = quantized.levels > 0
        return np.where(positive, active, idle), np.where(positive, idle, active)

    def _project(self, values: Floats, mask: Bools | None) -> Quantized:
        if self.mode == "pair":
            codebook = self.conductances - self.low
        else:
            codebook = np.concatenate([[0.0], self.conductances])
            mask = np.ones(values.shape, dtype=np.bool_) if mask is None else mask
        scale = _fitted(values, codebook[1:], mask)
        return Quantized(_signed(values, codebook[1:], scale, mask), scale, codebook=codebook)


def _require_bits(bits: int, low: int, high: int) -> None:
    if not low <= bits <= high:
        raise ModelError(f"cannot quantize to {bits} bits: need {low}..{high}")


def _signed(values: Floats, magnitudes: Floats, scale: float, mask: Bools | None) -> Ints:
    """The index (1-based, signed) of the nearest of 0 and scale * +-magnitudes; ties to the smaller magnitude.

    With a mask, zero is no level but for pruned weights.
    """
    levels = magnitudes if mask is not None else np.concatenate([[0.0], magnitudes])
    index = np.searchsorted((levels[1:] + levels[:-1]) / 2, np.abs(values) / scale)
    signs = np.where(values < 0, -1, 1)
    if mask is None:
        return np.asarray(signs * index, dtype=np.int64)
    return np.asarray(np.where(mask, signs * (index + 1), 0), dtype=np.int64)


def _fitted(values: Floats, magnitudes: Floats, mask: Bools | None) -> float:
    """The scale of least squared error that the alternation finds; 1 where all weights are zero.

    It starts from scales that put the largest weight on a level (so that values on a grid keep it), from a geometric
    range and from the authors' mean|w| / (q / 2).
    """
    alive = np.abs(values.ravel() if mask is None else values[mask])
    alive = alive[alive > 0] if mask is None else alive
    if not alive.size or not alive.max():
        return 1.0
    levels = magnitudes if mask is not None else np.concatenate([[0.0], magnitudes])
    ascending = np.sort(alive)
    sums = np.concatenate([[0.0], np.cumsum(ascending)])
    count = max(2, min(_STARTS, _CELLS // len(levels)))
    some = magnitudes[np.unique(np.linspace(0, len(magnitudes) - 1, count).astype(np.int64))]
    unclipped = ascending[-1] / magnitudes[-1]
    starts = np.concatenate(
        [ascending[-1] / some, unclipped * np.geomspace(0.02, 1.0, count), [2 * ascending.mean() / magnitudes[-1]]]
    )
    return _alternate(ascending, sums, levels, starts)


def _alternate(ascending: Floats, sums: Floats, levels: Floats, scales: Floats) -> float:
    """The scale that takes most off the squared error after the rounds, all starts at once.

    Sorted values make a round cheap: a level's weights are a run, whose sum is a difference of two prefix sums.
    """
    middles = (levels[1:] + levels[:-1]) / 2
    ends = np.zeros((len(scales), 1), dtype=np.int64)
    for _ in range(_ROUNDS):
        inner = np.searchsorted(ascending, scales[:, None] * middles, side="right")
        bounds = np.concatenate([ends, inner, ends + ascending.size], axis=1)
        dots = np.diff(sums[bounds], axis=1) @ levels
        squares = np.diff(bounds, axis=1) @ np.square(levels)
        scales = np.where(squares > 0, dots / np.where(squares > 0, squares, 1.0), scales)
    return float(scales[np.argmax(np.square(dots) / np.where(squares > 0, squares, np.inf))])
