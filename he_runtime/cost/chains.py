"""The chains of primes that operations are measured on: one special prime, since other gadgets follow by formula.

On the native kernel what an operation costs depends on how long its primes are, by operation: transforms take seven times
as long above 2^50, products three, uploads no longer at all. So there it is measured below and above.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from ..params import MAX_LOG2_QP, CkksParams, find_primes
from ..plan.counts import FUSED
from .formulas import NARROW_BITS, wide_share

__all__ = ["has_long_primes", "narrow_chain", "wide_chain"]

_WIDE_BITS = 58


def has_long_primes(backend: str, params: CkksParams) -> bool:
    """Whether some of these primes take the kernel's slower path."""
    return backend in FUSED and wide_share((*params.primes, *params.special)) > 0


def narrow_chain(backend: str, params: CkksParams) -> CkksParams:
    """These parameters with one special prime; on the native kernel with no prime above 2^50."""
    if not has_long_primes(backend, params):
        return replace(params, special=params.special[:1])
    return _chain(params, (min(math.log2(q), NARROW_BITS) for q in (params.special[0], *params.primes)))


def wide_chain(backend: str, params: CkksParams) -> CkksParams | None:
    """On the native kernel: no more primes than these, all above 2^50, as many as 128-bit security holds. Elsewhere None."""
    if backend not in FUSED:
        return None
    count = len(params.primes) + 1
    held = MAX_LOG2_QP.get(params.degree, count * _WIDE_BITS)  # rings for tests have no limit
    count = max(2, min(count, held // _WIDE_BITS))
    return _chain(params, [min(float(_WIDE_BITS), held / count)] * count)


def _chain(params: CkksParams, bits: Iterable[float]) -> CkksParams:
    special, *primes = find_primes(params.degree, list(bits))
    return replace(params, primes=tuple(primes), special=(special,))
