"""Evaluation keys on a gadget of `he_runtime.gadget`, built from SEAL's own encryptions of zero.

To the zero (b, a) of digit d the term P * s' is added, in the rows of the digit's primes alone. That is deterministic
arithmetic: all the randomness of a key is SEAL's, drawn with its zeros. This is a secret-side module: servers never import
it, and the residues of the secret live here only while one key is being made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..gadget import Gadget
from ..modular import add_in_place, mulmod
from ..params import CkksParams
from ..ring import RELINEARIZATION, KeyRecord, KeyRequest, Poly, Residues
from . import seal_bridge, seal_format
from .zeros import ZeroSource

__all__ = ["make_key", "secret_residues"]


@contextmanager
def secret_residues(params: CkksParams, secret: Any) -> Iterator[Residues]:
    """The residues of a SEAL secret key in evaluation form, (primes + special primes, N); overwritten at the end."""
    shape = (len(params.primes) + len(params.special), params.degree)
    saved = seal_bridge.save_object(secret, secret=True)
    try:
        members = seal_format.private_body(saved, seal_format.plaintext_bytes(math.prod(shape)))
    finally:
        saved[:] = bytes(len(saved))
    residues = np.frombuffer(members, "<u8", offset=seal_format.plaintext_bytes(0)).reshape(shape)
    try:
        yield residues
    finally:
        residues.fill(0)


def make_key(params: CkksParams, gadget: Gadget, request: KeyRequest, secret: Residues, zeros: ZeroSource) -> KeyRecord:
    """The key for `request`; `secret` are the residues of s, from `secret_residues`.

    Each digit consumes one zero. The request must be one that `params` have, and `gadget` must `check` them.
    """
    live = request.level + 1
    kept = [*range(live), *range(len(params.primes), len(secret))]
    digits: list[tuple[Residues, Poly]] = []
    for digit in gadget.digits(request.level):
        b, a = zeros.draw().consume()
        for j in digit:
            _add_term(b[j], secret[j], request.element, params, j)
        digits.append((b[kept], a[kept] if isinstance(a, np.ndarray) else a))
    return KeyRecord(request.element, request.level, tuple(digits), gadget.name)


def _add_term(b: Residues, s: Residues, element: int, params: CkksParams, j: int) -> None:
    """Add P * s' to row j of b, in place: what was a zero is then nowhere any more."""
    q = params.primes[j]
    switched = mulmod(s, s, q) if element == RELINEARIZATION else s[_automorphism(params.degree, element)]
    term = mulmod(switched, math.prod(params.special) % q, q)
    add_in_place(b, term, q)
    switched.fill(0)
    term.fill(0)


@lru_cache(maxsize=8)
def _automorphism(degree: int, element: int) -> npt.NDArray[np.intp]:
    """Where X -> X^element finds the value of each position of SEAL's bit-reversed evaluation form."""
    bits = degree.bit_length() - 1
    exponent = 2 * _reversed(np.arange(degree), bits) + 1
    return _reversed((exponent * element % (2 * degree)) >> 1, bits)


def _reversed(values: npt.NDArray[np.intp], bits: int) -> npt.NDArray[np.intp]:
    result = np.zeros_like(values)
    for k in range(bits):
        result |= (values >> k & 1) << (bits - 1 - k)
    return result
