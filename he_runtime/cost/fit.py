"""Seconds of a leaf as a formula of ring degree and level, fitted to measured ones: for the rings nobody measured.

A leaf costs a call, so much per butterfly of its transforms and so much per element of its passes (formulas.py): three
prices at most, none of them negative, by non-negative least squares on relative errors.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .entry import CostEntry
from .formulas import SEAL_SHAPE, Shape, leaf_terms, leaf_work

__all__ = ["LeafFit", "fit_leaf"]

_Point = tuple[int, int]  # (degree, level)


@dataclass(frozen=True)
class LeafFit:
    """Seconds per call, per butterfly and per element of a pass; `error` is the RMS relative error at the measured points."""

    leaf: str
    call: float
    butterfly: float
    element: float
    error: float
    measured: Mapping[_Point, CostEntry]

    def formula(self, degree: int, level: int, shape: Shape = SEAL_SHAPE) -> float:
        """Seconds by the three prices alone."""
        calls, butterflies, elements = leaf_terms(self.leaf, degree, level, shape)
        return calls * self.call + butterflies * self.butterfly + elements * self.element

    def entry(self, degree: int, level: int) -> CostEntry:
        """What was measured; else the formula, on a measured ring times what it is off by at the neighbouring levels."""
        exact = self.measured.get((degree, level))
        if exact is not None:
            return exact
        seconds, near = self.formula(degree, level), self._neighbours(degree, level)
        if not near:
            return CostEntry(seconds, math.hypot(self.error, self._usual_spread))
        corrections = [self.measured[degree, x].seconds / self.formula(degree, x) for x in near]
        t = (level - near[0]) / (near[-1] - near[0]) if len(near) > 1 else 0.0
        correction = corrections[0] * (1 - t) + corrections[-1] * t
        return CostEntry(seconds * correction, max(self.measured[degree, x].spread for x in near))

    def on_gadget(self, degree: int, level: int, shape: Shape) -> CostEntry:
        """On another gadget than the measured one, SEAL's: that entry times what the formula says of both."""
        measured = self.entry(degree, level)
        ratio = self.formula(degree, level, shape) / self.formula(degree, level)
        return CostEntry(
            measured.seconds * ratio, math.hypot(measured.spread, self.error) if ratio != 1 else measured.spread
        )

    def _neighbours(self, degree: int, level: int) -> list[int]:
        """The measured levels next to `level` on this ring: two, or one at the end, or none."""
        levels = [x for d, x in self.measured if d == degree]
        below = max((x for x in levels if x < level), default=None)
        above = min((x for x in levels if x > level), default=None)
        return [x for x in (below, above) if x is not None]

    @cached_property
    def _usual_spread(self) -> float:
        return statistics.median(entry.spread for entry in self.measured.values())


def fit_leaf(leaf: str, measured: Mapping[_Point, CostEntry]) -> LeafFit:
    """Fit the prices of one leaf; with fewer points than prices, one price for all work, which is proportional to it."""
    seconds = np.array([entry.seconds for entry in measured.values()])
    terms = np.array([leaf_terms(leaf, *point) for point in measured])
    if len(measured) < terms.shape[1]:
        price = float(np.mean(seconds / [leaf_work(leaf, *point) for point in measured]))
        prices = np.array([0.0, price, price])
    else:
        # Here, since importing it takes as long as all of the runtime, and few processes fit anything.
        from scipy.optimize import nnls

        relative = terms / seconds[:, None]
        size = np.maximum(relative.max(axis=0), np.finfo(float).tiny)
        prices = nnls(relative / size, np.ones(len(seconds)))[0] / size
    errors = terms @ prices / seconds - 1
    call, butterfly, element = prices.tolist()
    return LeafFit(leaf, call, butterfly, element, float(np.sqrt(np.mean(errors**2))), dict(measured))
