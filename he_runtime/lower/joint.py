"""Several tensors seen as one, one after the other in ciphertexts: what a linear stage of several inputs reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..layout import Layout, Positions

__all__ = ["JointLayout"]


@dataclass(frozen=True)
class JointLayout:
    """The parts' ciphertexts in order. A part of a smaller period is repeated, so the largest period serves all."""

    parts: tuple[Layout, ...]

    @property
    def slots(self) -> int:
        return self.parts[0].slots

    @property
    def period(self) -> int:
        return max(p.period for p in self.parts)

    @property
    def ciphertexts(self) -> int:
        return sum(p.ciphertexts for p in self.parts)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The first ciphertext of each part."""
        counts = [0, *(p.ciphertexts for p in self.parts)]
        return tuple(int(n) for n in np.cumsum(counts)[:-1])

    @property
    def uniform(self) -> frozenset[int]:
        return frozenset(first + k for p, first in zip(self.parts, self.offsets, strict=True) for k in p.uniform)

    @cached_property
    def positions(self) -> Positions:
        """Flat position of every element of every part: (sum of sizes,)."""
        shifted = [p.positions + k * self.slots for p, k in zip(self.parts, self.offsets, strict=True)]
        return np.concatenate(shifted)
