"""The scale of every power and part of a polynomial, exactly, before any operation is emitted.

A dry run from the top down (Bossuat et al., EUROCRYPT'21, section 4): the result has to have scale S after the rescale
by q, so each product has scale S q, so a part multiplied by C_M has scale S q / scale(C_M), and so on; coefficients are
encoded at whatever closes the gap. What is free is the input's scale: from it the powers' follow,
scale(C_{a+b}) = scale(C_a) scale(C_b) / q. It is chosen so that the coarsest quantity is as fine as possible.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..params import CkksParams
from .polynomial import Leaf, Structure, Sum

__all__ = ["Path", "PolynomialScales", "polynomial_scales"]

Path = tuple[int, ...]  # of a part: which product of the top sum, which of that one's, ...
_RESCALE_NOISE_BITS = 11.0  # of the error that a rescale leaves, in units of the scale
_ENOUGH_BITS = 16.0  # a coefficient encoded at this scale needs no rescale of its own
_LEAST_BITS = 8.0
_ROOM_BITS = 4.0  # above the largest value on the interval
_LOWEST_BITS, _STEP_BITS = 20.0, 3.0


@dataclass(frozen=True)
class PolynomialScales:
    """Scales for one chain and one input scale. `late` holds the terms of a leaf that are rescaled apart."""

    structure: Structure
    params: CkksParams = field(repr=False)
    level: int
    result: float
    input: float
    raised_from: float = 0.0  # the scale at which the input comes, where a constant raises it

    def prime(self, height: int) -> int:
        """What a rescale of a value of this height divides by."""
        return self.params.primes[self.level - height]

    @cached_property
    def powers(self) -> dict[int, float]:
        """The scale of C_k, by k."""
        scales = {1: self.input}
        for k, power in self.structure.powers.items():
            scales[k] = scales[power.left] * scales[power.right] / self.prime(power.height - 1)
        return scales

    @cached_property
    def parts(self) -> dict[Path, float]:
        """The scale of every part, as it enters its product; () is the whole."""
        return dict(self._parts(self.structure.top, self.structure.depth - 1, self.result, ()))

    def _parts(self, part: Leaf, height: int, scale: float, path: Path) -> Iterator[tuple[Path, float]]:
        yield path, scale
        if isinstance(part, Sum):
            for index, (inner, giant) in enumerate(part.products):
                wanted = scale * self.prime(height) / self.powers[giant]
                yield from self._parts(inner, height - 1, wanted, (*path, index))

    def late(self, leaf: Leaf, height: int, path: Path) -> frozenset[int]:
        """The terms of a leaf entering a product at `height` + 1 that get a rescale of their own: the scale is too near.

        Only those whose power is there one level earlier can have one.
        """
        near = (k for k in leaf.terms if k and self.parts[path] < self.powers[k] * 2**_ENOUGH_BITS)
        return frozenset(k for k in near if self.structure.heights[k] <= height)

    @cached_property
    def error_bits(self) -> float:
        """How far below 1 the errors of all coefficients and values lie together; -inf where something does not fit."""
        if not self._fits():
            return -math.inf
        found = [math.log2(s) - _RESCALE_NOISE_BITS for s in (*self.powers.values(), *self.parts.values())]
        if self.raised_from:
            found.append(math.log2(self.input / self.raised_from))
        for path, part, height in _walk(self.structure.top, self.structure.depth - 1, ()):
            for bits in self._coefficients(part, height, path):
                if bits < _LEAST_BITS:
                    return -math.inf
                found.append(bits)
        return -0.5 * math.log2(sum(4.0**-bits for bits in found))

    def _fits(self) -> bool:
        """Whether everything stays below its modulus: powers, leaves as they enter a product, sums before their rescale."""
        need = [(2 * scale, self.structure.heights[k]) for k, scale in self.powers.items()]
        for path, part, height in _walk(self.structure.top, self.structure.depth - 1, ()):
            largest = self.parts[path] * max(part.bound, 1.0)
            if path:  # the whole is held to what calibration saw of it, elsewhere
                need.append((largest * self.prime(height), height) if isinstance(part, Sum) else (largest, height + 1))
        return all(math.log2(x) + _ROOM_BITS < self.params.log2_q(self.level - height) for x, height in need)

    def _coefficients(self, part: Leaf, height: int, path: Path) -> Iterator[float]:
        """Bits at which the coefficients of a leaf, or of the rest of a sum, are encoded."""
        late = self.late(part, height, path) if not isinstance(part, Sum) else frozenset(part.rest.terms)
        for k in part.rest.terms if isinstance(part, Sum) else part.terms:
            if k:
                yield math.log2(self.parts[path] * (self.prime(height) if k in late else 1) / self.powers[k])


def _walk(part: Leaf, height: int, path: Path) -> Iterator[tuple[Path, Leaf, int]]:
    """(path, part, height): a sum's products have that height; a leaf may be rescaled once from it."""
    yield path, part, height
    if isinstance(part, Sum):
        for index, (inner, _) in enumerate(part.products):
            yield from _walk(inner, height - 1, (*path, index))


def polynomial_scales(
    structure: Structure, params: CkksParams, level: int, result: float, raised_from: float = 0.0
) -> PolynomialScales | None:
    """The best input scale and all that follows; None where nothing fits.

    `level` is the input's, `result` the scale that the polynomial has after its last rescale, and `raised_from` that of the
    input, unless it comes at any scale asked for. C_k has about the scale q (input / q)^k, so what is searched is the
    scale of the last power.
    """
    prime, last = math.log2(params.primes[level]), max(structure.heights)

    def scales(bits: float) -> PolynomialScales:
        scale = 2.0 ** (prime - (prime - bits) / last)
        return PolynomialScales(structure, params, level, result, scale, raised_from)

    def error_bits(bits: float) -> float:
        found = scales(bits)
        return found.error_bits if found.input >= raised_from * 2**_LEAST_BITS else -math.inf

    coarse = np.arange(_LOWEST_BITS, prime + 4 * _STEP_BITS, _STEP_BITS)
    best = max(coarse, key=error_bits)
    best = max(best + np.arange(-_STEP_BITS, _STEP_BITS + 0.1, 0.5), key=error_bits)
    return scales(best) if error_bits(best) > -math.inf else None
