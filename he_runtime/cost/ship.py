"""Measure the table that ships with a backend: `python -m he_runtime.cost.ship tenseal OUTPUT.json [SECONDS]`.

Each ring degree gets the longest chain of equal primes that its security budget holds, at the lowest, middle and
highest level; everything between is interpolated when a plan is priced.
"""

from __future__ import annotations

import dataclasses
import sys

from ..params import MAX_LOG2_QP, CkksParams, find_primes
from .calibrate import calibrate
from .table import CostEntry, CostTable, Key

__all__ = ["ship"]

_PRIMES = {4096: 3, 8192: 5, 16384: 9, 32768: 16}  # special prime included


def ship(backend: str, seconds: float) -> CostTable:
    """One table over all degrees, `seconds` of measuring each."""
    entries: dict[Key, CostEntry] = {}
    table: CostTable | None = None
    for degree, count in _PRIMES.items():
        special, *primes = find_primes(degree, [MAX_LOG2_QP[degree] / count] * count)
        params = CkksParams(degree, tuple(primes), (special,))
        top = params.max_level
        table = calibrate(backend, params, {0, top // 2, top}, seconds)
        entries.update(table.entries)
        print(f"N={degree}: {len(table.entries)} entries", file=sys.stderr)
    assert table is not None
    return dataclasses.replace(table, kind="shipped", entries=entries)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    ship(sys.argv[1], float(sys.argv[3]) if len(sys.argv) == 4 else 30.0).save(sys.argv[2])
