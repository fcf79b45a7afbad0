"""One row of a cost table."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CostEntry"]


@dataclass(frozen=True)
class CostEntry:
    """Median seconds of one call, and its spread: half the interquartile range over the median."""

    seconds: float
    spread: float
