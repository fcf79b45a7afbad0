"""Work of one leaf from limb counts: what a fit of measured times has for terms.

Hybrid key switching (Han and Ki, "Better bootstrapping for approximate homomorphic encryption", section 3): n live primes
in b digits and k special primes take b (n + k) transforms of digits, of which n are spared, and an inner product of
2 b (n + k) N multiplications; a division by the special primes takes n + k transforms a polynomial. One prime per digit and
one special prime are Microsoft SEAL's case: (n + 2)(n + 1) transforms in all. Fused stages: plan/counts.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

__all__ = ["BORDER", "NARROW_BITS", "SEAL_SHAPE", "WIDE", "Shape", "leaf_terms", "leaf_work", "wide_share"]

BORDER = ("upload", "download")  # ring data to and from the backend, once per ciphertext of a run
NARROW_BITS = 50  # of the primes that the native kernel's vector paths take
WIDE = "wide_"  # before a leaf's name: the same where all primes are longer
Shape = tuple[int, int]  # of a gadget: primes per digit, special primes
SEAL_SHAPE: Shape = (1, 1)


def leaf_terms(leaf: str, degree: int, level: int, shape: Shape = SEAL_SHAPE) -> tuple[float, float, float]:
    """(calls, butterflies of transforms, elements of passes) of `leaf` at `level`; KeyError for an unknown leaf."""
    live, (alpha, special) = level + 1, shape
    digits = -(-live // alpha)
    transforms, passes = _WORK[leaf.removeprefix(WIDE)](live, digits, special)
    return 1.0, transforms * degree / 2 * math.log2(degree), float(passes * degree)


def leaf_work(leaf: str, degree: int, level: int, shape: Shape = SEAL_SHAPE) -> float:
    """Modular multiplications (or equally long memory passes), all at one price."""
    return sum(leaf_terms(leaf, degree, level, shape)[1:])


def wide_share(primes: Sequence[int]) -> float:
    """How many of these primes the vector paths do not take, of 1."""
    return sum(q.bit_length() > NARROW_BITS for q in primes) / len(primes)


def _switch(n: int, b: int, k: int) -> tuple[int, int]:
    return b * (n + k) + 2 * (n + k), 2 * b * (n + k) + 4 * n


# leaf -> function of live primes n, digits b, special primes k: (transforms, passes)
_WORK: dict[str, Callable[[int, int, int], tuple[int, int]]] = {
    "sub": lambda n, b, k: (0, 2 * n),
    "negate": lambda n, b, k: (0, 2 * n),
    "add": lambda n, b, k: (0, 2 * n),
    "add_plain": lambda n, b, k: (0, 2 * n),
    "mul_plain": lambda n, b, k: (0, 2 * n),
    "mul": lambda n, b, k: (0, 4 * n),
    "square": lambda n, b, k: (0, 3 * n),
    "relinearize": _switch,
    "rescale": lambda n, b, k: (2 * n, 2 * (n - 1) + 2),
    "mod_switch": lambda n, b, k: (0, 2 * n),
    "rotate": _switch,
    "conjugate": _switch,
    "upload": lambda n, b, k: (0, 2 * n),
    "download": lambda n, b, k: (0, 2 * n),
    "decompose": lambda n, b, k: (b * (n + k), b * (n + k)),
    "hoisted": lambda n, b, k: (0, 3 * b * (n + k) + 3 * n),
    "product": lambda n, b, k: (0, 2 * (n + k)),
    "flat_product": lambda n, b, k: (0, 2 * n),
    "constant_product": lambda n, b, k: (0, 2 * n),
    "giant": lambda n, b, k: (n + k + b * (n + k), 3 * b * (n + k) + 4 * (n + k)),
    "divide": lambda n, b, k: (2 * (n + k), 4 * (n + k)),
}
