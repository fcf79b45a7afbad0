"""Exact products modulo primes below 2^60 in NumPy, whose widest integers have 64 bits.

One factor is cut into parts of 30 bits. The quotient of a product with such a part is below 2^30, so floating point finds
it to within one: four roundings of 2^-53 each leave an error below 2^-21. The remainder is then right modulo 2^64, between
-q and 2q, and two conditional additions finish it. Nothing branches on a value, and every buffer of intermediate values is
overwritten, because the secret side multiplies secrets here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["add_in_place", "mulmod"]

_Words = npt.NDArray[np.uint64]
_PART_BITS = np.uint64(30)
_PART = np.uint64(1 << 30)
_SIGN_BIT = np.int64(63)


def mulmod(x: _Words, y: _Words | int, q: int) -> _Words:
    """x * y modulo q, exactly, for x and y below q < 2^60; they broadcast against each other, x being the larger."""
    factor = np.atleast_1d(np.asarray(y, dtype=np.uint64))
    high, low = factor >> _PART_BITS, factor & (_PART - np.uint64(1))
    part = _times_small(x, high, q)
    shifted = _times_small(part, np.atleast_1d(_PART), q)
    result = _times_small(x, low, q)
    add_in_place(result, shifted, q)
    for buffer in (high, low, part, shifted):
        buffer.fill(0)
    return result


def add_in_place(x: _Words, y: _Words, q: int) -> None:
    """x becomes x + y modulo q, for x and y below q < 2^60."""
    x += y
    _wrap(x, q, np.empty_like(x))


def _times_small(x: _Words, small: _Words, q: int) -> _Words:
    """x * small modulo q, for x below q and small at most 2^30."""
    guess = x.astype(np.float64)
    guess *= small
    guess /= float(q)
    quotient = guess.astype(np.uint64)
    quotient *= np.uint64(q)
    result = x * small
    result -= quotient
    _add_where_negative(result, q, quotient)
    _wrap(result, q, quotient)
    guess.fill(0)
    return result


def _wrap(x: _Words, q: int, buffer: _Words) -> None:
    """x in [0, 2q) becomes x modulo q; `buffer` is overwritten."""
    x -= np.uint64(q)
    _add_where_negative(x, q, buffer)


def _add_where_negative(x: _Words, q: int, buffer: _Words) -> None:
    """Add q where x, read as a signed word, is negative; `buffer` is overwritten, with zeros in the end."""
    np.right_shift(x.view(np.int64), _SIGN_BIT, out=buffer.view(np.int64))
    buffer &= np.uint64(q)
    x += buffer
    buffer.fill(0)
