"""The stages of a fused linear transform, measured: one call runs them all, and says what share of it each took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..plan import Kind, Op, ValueType
from ..plan.counts import CONSTANT_PRODUCT, FLAT_PRODUCT, FUSED_LEAVES

__all__ = ["FusedBench"]

_GIANTS = 4  # the first of which is no rotation
_INPUTS = 8  # of the transforms without a rotation
_CONSTANTS = 512


class FusedBench:
    """Ops to put into a plan that has a ciphertext of each level, and routines that time their stages.

    `rotating` has a baby step for every key and a few giant steps; the others have none.
    """

    def __init__(self, steps: Sequence[int], vectors: int, constant: int) -> None:
        self._steps, self._vectors, self._constant = list(steps), vectors, constant
        self._ops: dict[int, dict[str, Op]] = {}

    def ops(self, level: int, value: int, first_plaintext: int, values: list[ValueType], scale: float) -> list[Op]:
        """The three transforms of `value` at `level`; appends the types of their results to `values`."""
        shapes = {
            "rotating": self._rotating(first_plaintext),
            FLAT_PRODUCT: self._flat(first_plaintext),
            CONSTANT_PRODUCT: self._constants(first_plaintext + self._constant),
        }
        self._ops[level] = {}
        for name, (inputs, outputs, cells) in shapes.items():
            results = tuple(range(len(values), len(values) + outputs))
            values += [ValueType(level, scale)] * outputs
            op = Op(Kind.LINEAR_TRANSFORM, (value,) * inputs, results, "bench", cells=np.array(cells, dtype=np.int64))
            self._ops[level][name] = op
        return list(self._ops[level].values())

    def _rotating(self, first: int) -> tuple[int, int, list[tuple[int, ...]]]:
        giants = [0, *self._steps[: _GIANTS - 1]]
        pairs = [(baby, giant) for giant in giants for baby in self._steps]
        return 1, 1, [(0, 0, baby, giant, first + k % self._vectors) for k, (baby, giant) in enumerate(pairs)]

    def _flat(self, first: int) -> tuple[int, int, list[tuple[int, ...]]]:
        return _INPUTS, 1, [(0, k % _INPUTS, 0, 0, first + k % self._vectors) for k in range(4 * _INPUTS)]

    def _constants(self, plaintext: int) -> tuple[int, int, list[tuple[int, ...]]]:
        outputs = _CONSTANTS // _INPUTS
        return _INPUTS, outputs, [(i, j, 0, 0, plaintext) for i in range(outputs) for j in range(_INPUTS)]

    def calls(
        self, level: int, evaluator: Any, ciphertexts: Sequence[Any]
    ) -> Iterator[tuple[str, Callable[[], float]]]:
        """Each stage with a routine that runs the transform, and says how many of that stage would fill the time it took."""
        for leaf in FUSED_LEAVES:
            op = self._ops[level].get(leaf, self._ops[level]["rotating"])
            operands = [ciphertexts[k % len(ciphertexts)] for k in range(len(op.inputs))]
            yield leaf, _Share(evaluator, op, operands, leaf, level)


class _Share:
    def __init__(self, evaluator: Any, op: Op, operands: Sequence[Any], leaf: str, level: int) -> None:
        self._evaluator, self._op, self._operands, self._key = evaluator, op, operands, (leaf, level)

    def __call__(self) -> float:
        counters: Counter[tuple[str, int]] = self._evaluator.counters
        stages: dict[tuple[str, int], float] = self._evaluator.stage_seconds
        counters.clear()
        stages.clear()
        self._evaluator.linear_transform(self._op, self._operands)
        share = stages[self._key] / sum(stages.values())
        return counters[self._key] / share
