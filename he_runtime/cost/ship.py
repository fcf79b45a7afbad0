"""Measure the table that ships with a backend: `python -m he_runtime.cost.ship tenseal OUTPUT.json [SECONDS]`."""

from __future__ import annotations

import dataclasses
import importlib
import sys

from ..plan.counts import FUSED
from .survey import RINGS, survey
from .table import CostTable

__all__ = ["ship"]


def ship(backend: str, seconds: float) -> CostTable:
    """One table over all rings, `seconds` of measuring each, on one thread."""
    if backend in FUSED:
        importlib.import_module("he_runtime.kernel._kernel").set_threads(1)
    return dataclasses.replace(survey(backend, seconds=seconds * len(RINGS)), kind="shipped")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    ship(sys.argv[1], float(sys.argv[3]) if len(sys.argv) == 4 else 30.0).save(sys.argv[2])
