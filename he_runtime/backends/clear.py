"""The clear evaluator: float64 slot vectors. It is the living definition of every op."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..plan import Plan
from .base import Evaluator

__all__ = ["ClearEvaluator", "ClearValue"]

Slots = npt.NDArray[np.float64]


class ClearValue:
    """Slot vectors (batch, slots) with the level they would have; no scale, since values are real numbers here."""

    __slots__ = ("level", "slots")

    def __init__(self, slots: Slots, level: int) -> None:
        self.slots = slots
        self.level = level


class ClearEvaluator(Evaluator[ClearValue]):
    """Evaluates a plan on plain numbers, a whole batch of inputs at once; `operands` may replace the plaintexts."""

    def __init__(self, plan: Plan, operands: Sequence[Slots] | None = None) -> None:
        super().__init__(plan)
        self._vectors = operands or [plan.repeated(p) for p in plan.plaintexts]

    def upload(self, slots: Slots, level: int) -> ClearValue:
        """(batch, slots) at a level."""
        return ClearValue(slots, level)

    def _operand(self, plaintext: int) -> Slots:
        vector = self._vectors[plaintext]
        return vector if len(vector) == 1 else np.resize(vector, self.plan.params.slots)

    def _result(self, leaf: str, x: ClearValue, slots: Slots, drop: int = 0) -> ClearValue:
        self.counters[leaf, x.level] += 1
        return ClearValue(slots, x.level - drop)

    def add(self, x: ClearValue, y: ClearValue) -> ClearValue:
        return self._result("add", x, x.slots + y.slots)

    def sub(self, x: ClearValue, y: ClearValue) -> ClearValue:
        return self._result("sub", x, x.slots - y.slots)

    def negate(self, x: ClearValue) -> ClearValue:
        return self._result("negate", x, -x.slots)

    def term(self, x: ClearValue, plaintext: int) -> ClearValue:
        return ClearValue(x.slots * np.abs(self._operand(plaintext)), x.level)  # numbers here have no scale

    def add_plain(self, x: ClearValue, plaintext: int) -> ClearValue:
        return self._result("add_plain", x, x.slots + self._operand(plaintext))

    def mul_plain(self, x: ClearValue, plaintext: int) -> ClearValue:
        return self._result("mul_plain", x, x.slots * self._operand(plaintext))

    def mul(self, x: ClearValue, y: ClearValue) -> ClearValue:
        return self._result("mul", x, x.slots * y.slots)

    def square(self, x: ClearValue) -> ClearValue:
        return self._result("square", x, x.slots * x.slots)

    def relinearize(self, x: ClearValue) -> ClearValue:
        return self._result("relinearize", x, x.slots)

    def rescale(self, x: ClearValue) -> ClearValue:
        return self._result("rescale", x, x.slots, drop=1)

    def mod_switch(self, x: ClearValue) -> ClearValue:
        return self._result("mod_switch", x, x.slots, drop=1)

    def rotate(self, x: ClearValue, step: int) -> ClearValue:
        return self._result("rotate", x, np.roll(x.slots, -step, axis=-1))

    def conjugate(self, x: ClearValue) -> ClearValue:
        return self._result("conjugate", x, np.conj(x.slots))
