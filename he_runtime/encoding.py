"""What encoding does to an operand: the canonical embedding in NumPy, to know its rounding error before it happens.

A vector of period p over the slots is a polynomial in X^(N/2p), so its 2p coefficients come from a transform of that
size. Coefficients are rounded to integers at the plaintext's scale; the error is fixed once a model is compiled.
Slot j belongs to the root zeta^(3^j) (SEAL's order). Cheon et al., ASIACRYPT'17, section 2.2.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

__all__ = ["coefficients", "constant", "constants", "faintest", "rounded"]

Indices = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float64]


def constant(value: float, scale: float) -> float:
    """The nearest multiple of 1 / scale, but not zero: SEAL refuses the product by an operand that rounds to nothing."""
    integer = round(value * scale)
    if integer == 0 and value:
        integer = 1 if value > 0 else -1
    return integer / scale


def constants(values: Vectors, scale: float) -> Vectors:
    """`constant` of each."""
    integers = np.rint(values * scale)
    return np.asarray(np.where(integers == 0, np.sign(values), integers) / scale)


def faintest(vector: Vectors, scale: float) -> float:
    """The constant that stands for a vector all of whose coefficients round to zero; as wrong as that rounding."""
    return (1.0 if vector.sum() >= 0 else -1.0) / scale


def rounded(vectors: Vectors, scale: float) -> Vectors:
    """Real vectors (count, period) as they are after encoding at `scale` and decoding again: (count, period)."""
    period = vectors.shape[1]
    if period == 1:
        return constants(vectors, scale)
    integers = coefficients(vectors, scale) / scale
    for row in np.flatnonzero(~integers.any(axis=1)):
        integers[row, 0] = faintest(vectors[row], scale)
    decoded = np.fft.ifft(integers / _twist(period), axis=1).real * (2 * period)
    return np.asarray(decoded[:, _slots(period)[0]])


def coefficients(vectors: Vectors, scale: float) -> Vectors:
    """Real vectors (count, period) -> integers (count, 2 period): row i holds the coefficients of X^(k N / 2 period) at `scale`."""
    period = vectors.shape[1]
    slot, conjugate = _slots(period)
    values = np.empty((len(vectors), 2 * period))
    values[:, slot] = vectors
    values[:, conjugate] = vectors
    integers: Vectors = np.rint((np.fft.fft(values, axis=1) * _twist(period)).real * (scale / (2 * period)))
    return integers


@cache
def _slots(period: int) -> tuple[Indices, Indices]:
    """Where slot j and its conjugate stand among the 2 period odd powers of the root."""
    exponents = np.array([pow(3, j, 4 * period) for j in range(period)])
    return (exponents - 1) // 2, (4 * period - exponents - 1) // 2


@cache
def _twist(period: int) -> npt.NDArray[np.complex128]:
    return np.asarray(np.exp(-1j * np.pi * np.arange(2 * period) / (2 * period)))
