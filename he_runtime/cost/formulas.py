"""Work of one leaf from limb counts: what a fit of measured times has for terms.

Hybrid key switching with one special prime and one prime per digit (Han and Ki, "Better bootstrapping for approximate
homomorphic encryption", section 3; as in Microsoft SEAL): (l + 2)(l + 1) transforms for l live primes, each of
(N/2) log2 N butterflies, and an inner product of 2 l (l + 1) N multiplications.
"""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["BORDER", "leaf_terms", "leaf_work"]

BORDER = ("upload", "download")  # ring data to and from the backend, once per ciphertext of a run


def leaf_terms(leaf: str, degree: int, level: int) -> tuple[float, float, float]:
    """(calls, butterflies of transforms, elements of passes) of `leaf` at `level`; KeyError for an unknown leaf."""
    limbs = level + 1
    transform = degree / 2 * math.log2(degree)
    return 1.0, _TRANSFORMS[leaf](limbs) * transform, float(_PASSES[leaf](limbs) * degree)


def leaf_work(leaf: str, degree: int, level: int) -> float:
    """Modular multiplications (or equally long memory passes), all at one price."""
    return sum(leaf_terms(leaf, degree, level)[1:])


# leaf -> function of the number n of live primes
_TRANSFORMS: dict[str, Callable[[int], int]] = {
    "add": lambda n: 0,
    "add_plain": lambda n: 0,
    "mul_plain": lambda n: 0,
    "mul": lambda n: 0,
    "square": lambda n: 0,
    "relinearize": lambda n: (n + 2) * (n + 1),
    "rescale": lambda n: 2 * n,
    "mod_switch": lambda n: 0,
    "rotate": lambda n: (n + 2) * (n + 1),
    "conjugate": lambda n: (n + 2) * (n + 1),
    "upload": lambda n: 0,
    "download": lambda n: 0,
}

_PASSES: dict[str, Callable[[int], int]] = {
    "add": lambda n: 2 * n,
    "add_plain": lambda n: 2 * n,
    "mul_plain": lambda n: 2 * n,
    "mul": lambda n: 4 * n,
    "square": lambda n: 3 * n,
    "relinearize": lambda n: 2 * n * (n + 1) + 4 * n,
    "rescale": lambda n: 2 * (n - 1) + 2,
    "mod_switch": lambda n: 2 * n,
    "rotate": lambda n: 2 * n * (n + 1) + 4 * n,
    "conjugate": lambda n: 2 * n * (n + 1) + 4 * n,
    "upload": lambda n: 2 * n,
    "download": lambda n: 2 * n,
}
