"""A cost table over several rings: few levels each, the rest follows from the fitted formulas."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from ..errors import ParameterError
from ..params import MAX_LOG2_QP, CkksParams, find_primes
from ..plan.counts import FUSED
from .calibrate import calibrate
from .entry import CostEntry
from .formulas import NARROW_BITS
from .table import CostTable, Key

__all__ = ["RINGS", "survey"]

RINGS = {
    4096: 3,
    8192: 5,
    16384: 9,
    32768: 16,
}  # ring degree -> primes of its longest useful chain, special one included


def survey(
    backend: str,
    degrees: Sequence[int] = tuple(RINGS),
    seconds: float = 30.0,
    progress: Callable[[float], None] | None = None,
) -> CostTable:
    """Measure every ring with the longest chain of equal primes that its security budget holds, `seconds` in all.

    The lowest, middle and highest level are measured. Raises BackendUnavailable, or ParameterError for a degree that is
    not in RINGS.
    """
    unknown = sorted(set(degrees) - set(RINGS))
    if unknown or not degrees:
        raise ParameterError(f"cannot calibrate N={unknown or 'nothing'}: need some of {', '.join(map(str, RINGS))}")
    report = progress or (lambda share: None)
    entries: dict[Key, CostEntry] = {}
    for index, degree in enumerate(degrees):

        def inside(phase: str, share: float, done: int = index) -> None:
            report((done + share) / len(degrees))

        bits = min(MAX_LOG2_QP[degree] / RINGS[degree], NARROW_BITS if backend in FUSED else math.inf)
        special, *primes = find_primes(degree, [bits] * RINGS[degree])
        params = CkksParams(degree, tuple(primes), (special,))
        top = params.max_level
        table = calibrate(backend, params, {0, top // 2, top}, seconds / len(degrees), inside)
        entries |= table.entries
    return dataclasses.replace(table, entries=entries)
