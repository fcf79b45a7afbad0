"""Polynomial activations: coefficients on an interval, in the Chebyshev or the power basis, per channel or for all.

A polynomial of degree d on [low, high] is sum_k c_k T_k(u) with u = (2x - low - high) / (high - low) in [-1, 1], or
sum_k c_k x^k in the power basis, which is exact but needs more digits the higher the degree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev, polynomial

from .errors import ModelError

if TYPE_CHECKING:
    from .model import Node

__all__ = ["MAX_DEGREE", "chebyshev_coefficients", "check_polynomial", "evaluate", "interval", "interval_map"]

Floats = npt.NDArray[np.float64]
MAX_DEGREE = 255


def check_polynomial(node: Node, coefficients: Floats) -> None:
    """ModelError unless the node has a known basis, an interval and coefficients (degree + 1,) or (channels, degree + 1)."""
    channels = node.shape[0] if node.shape else 1
    basis = node.attrs["basis"]
    if basis not in ("chebyshev", "power"):
        raise ModelError(f"cannot use node {node.name!r}: got basis {basis!r}, need 'chebyshev' or 'power'")
    rows = coefficients.shape[:-1]
    if (
        coefficients.ndim not in (1, 2)
        or rows not in ((), (channels,))
        or not 1 <= coefficients.shape[-1] <= MAX_DEGREE + 1
    ):
        raise ModelError(
            f"cannot use node {node.name!r}: got coefficients of shape {coefficients.shape}, need (degree + 1,) or "
            f"({channels}, degree + 1) with a degree of at most {MAX_DEGREE}"
        )
    ends = [np.asarray(node.attrs[key], dtype=np.float64) for key in ("low", "high")]
    fits = all(np.isfinite(e).all() and e.shape in ((), (channels,)) for e in ends)
    if not fits or not (ends[0] < ends[1]).all():
        raise ModelError(
            f"cannot use node {node.name!r}: got the interval {node.attrs['low']} to {node.attrs['high']}, need low < "
            f"high, numbers or lists of {channels}"
        )


def interval(node: Node) -> tuple[Floats, Floats]:
    """The ends, each of shape () or (channels,)."""
    low, high = (np.asarray(node.attrs[key], dtype=np.float64) for key in ("low", "high"))
    return low, high


def interval_map(node: Node) -> tuple[Floats, Floats]:
    """scale and shift, () or (channels,), of the map v = scale * x + shift of the interval onto [-2, 2]."""
    low, high = interval(node)
    return 4.0 / (high - low), -2.0 * (low + high) / (high - low)


def evaluate(node: Node, coefficients: Floats, x: Floats) -> Floats:
    """The polynomial on samples (B, *shape), by Clenshaw's or Horner's rule."""
    trailing = (1,) * (x.ndim - 2)
    rows = coefficients.reshape(coefficients.shape[-1], 1) if coefficients.ndim == 1 else coefficients.T
    columns = rows.reshape(*rows.shape, *trailing)  # (degree + 1, channels or 1, 1, ...)
    if node.attrs["basis"] == "power":
        return np.asarray(polynomial.polyval(x, columns[:, None], tensor=False))
    low, high = (e.reshape((-1, *trailing)) for e in interval(node))
    return np.asarray(chebyshev.chebval((2 * x - low - high) / (high - low), columns[:, None], tensor=False))


def chebyshev_coefficients(node: Node, coefficients: Floats) -> Floats:
    """The coefficients in the Chebyshev basis of the node's interval, (degree + 1, channels or 1); leading zeros cut off."""
    low, high = interval(node)
    rows = np.atleast_2d(coefficients)
    if node.attrs["basis"] == "power":
        count = max(len(rows), low.size, high.size)
        ends = (np.broadcast_to(e, (count,)) for e in (low, high))
        stacked = zip(np.broadcast_to(rows, (count, rows.shape[1])), *ends, strict=True)
        rows = np.stack([_converted(c, a, b) for c, a, b in stacked])
    # What is far below rounding is zero: fits of odd and even functions leave such crumbs, and each would cost a product.
    rows = np.where(np.abs(rows) <= 2.0**-50 * np.abs(rows).max(), 0.0, rows)
    used = np.flatnonzero(rows.any(axis=0))
    return np.ascontiguousarray(rows[:, : int(used.max(initial=0)) + 1].T)


def _converted(powers: Floats, low: float, high: float) -> Floats:
    """sum_k c_k x^k on [low, high] -> its Chebyshev coefficients there, as many."""
    line = np.array([(low + high) / 2, (high - low) / 2])  # x as a polynomial of u
    result = np.zeros(1)
    for c in powers[::-1]:
        result = chebyshev.chebadd(chebyshev.chebmul(result, line), [c])
    return np.pad(result, (0, max(0, len(powers) - len(result))))[: len(powers)]
