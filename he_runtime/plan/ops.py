"""The op vocabulary of a plan: one table, and the typing rule of each op.

Every evaluator implements every leaf; a completeness test fails until it does. `LINEAR_TRANSFORM` is the second tier:
one op that a backend without hoisting expands into the leaves and the native kernel runs fused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..errors import PlanError
from ..params import CkksParams

__all__ = ["LEAVES", "TYPING", "Kind", "Op", "Plaintext", "ValueType", "distinct_pairs"]

Ints = npt.NDArray[np.int64]

RELATIVE_SCALE_TOLERANCE = 2.0**-40  # float64 rounding over a chain of products and quotients stays far below


class Kind(StrEnum):
    ADD = "add"
    SUB = "sub"
    NEGATE = "negate"
    ADD_PLAIN = "add_plain"
    MUL_PLAIN = "mul_plain"
    MUL = "mul"
    SQUARE = "square"
    RELINEARIZE = "relinearize"
    RESCALE = "rescale"
    MOD_SWITCH = "mod_switch"
    ROTATE = "rotate"
    CONJUGATE = "conjugate"
    REFRESH = "refresh"  # raises the level: a bootstrap or a round trip to the client; starts a new segment
    LINEAR_TRANSFORM = "linear_transform"


# What a backend implements one by one and counts; the rest is made of these.
LEAVES: tuple[Kind, ...] = tuple(k for k in Kind if k not in (Kind.LINEAR_TRANSFORM, Kind.REFRESH))


@dataclass(frozen=True)
class ValueType:
    """Type of a ciphertext value: level, exact plaintext scale, number of polynomials (2, or 3 after a product)."""

    level: int
    scale: float
    size: int = 2

    def same_scale(self, scale: float) -> bool:
        return abs(self.scale - scale) <= RELATIVE_SCALE_TOLERANCE * self.scale


@dataclass(frozen=True)
class Plaintext:
    """An encoded operand: a vector of the plan (by index, periodic over the slots) at a level and an exact scale."""

    vector: int
    level: int
    scale: float


@dataclass(frozen=True)
class Op:
    """One operation. `cells` belongs to LINEAR_TRANSFORM: rows (output, input, baby step, giant step, plaintext).

    LINEAR_TRANSFORM: out_i = sum_b rot_b( sum_{j,a} plaintext_{i,j,a,b} * rot_a(in_j) ), rotations to the left. A plaintext that
    is the integer 1 or -1 is a sign: its product is the operand itself, at the scale of the product (Plan.sign).
    `layer` names the model layer that the op belongs to, for listings and prices.
    """

    kind: Kind
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    layer: str
    plaintext: int = -1
    step: int = 0
    cells: Ints | None = field(default=None, repr=False, compare=False)

    @cached_property
    def babies(self) -> tuple[tuple[int, int], ...]:
        """Distinct (input, baby step) with a non-zero step, in order."""
        assert self.cells is not None
        return distinct_pairs(*self.cells[self.cells[:, 2] != 0, 1:3].T)[0]

    @cached_property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """Distinct (output, giant step), in order; each is one accumulated sum."""
        assert self.cells is not None
        return distinct_pairs(self.cells[:, 0], self.cells[:, 3])[0]


def distinct_pairs(first: Ints, second: Ints) -> tuple[tuple[tuple[int, int], ...], Ints]:
    """Distinct pairs of numbers that are not negative, in order, and which of them each pair is. Planning asks often."""
    span = int(second.max(initial=0)) + 1
    codes, which = np.unique(first * span + second, return_inverse=True)
    return tuple(zip((codes // span).tolist(), (codes % span).tolist(), strict=True)), which


Types = Sequence[ValueType]
Rule = Callable[[Op, Types, Plaintext | None, CkksParams], ValueType]


def _need(condition: bool, op: Op, what: str) -> None:
    if not condition:
        raise PlanError(f"cannot verify op {op.kind} of layer {op.layer!r}: need {what}")


def _add(op: Op, types: Types, _: Plaintext | None, __: CkksParams) -> ValueType:
    x, y = types
    _need(x.level == y.level and x.same_scale(y.scale), op, "operands of one level and scale")
    return ValueType(x.level, x.scale, max(x.size, y.size))


def _negate(op: Op, types: Types, _: Plaintext | None, __: CkksParams) -> ValueType:
    return types[0]


def _add_plain(op: Op, types: Types, plain: Plaintext | None, _: CkksParams) -> ValueType:
    x = types[0]
    _need(
        plain is not None and plain.level == x.level and x.same_scale(plain.scale),
        op,
        "a plaintext of equal level and scale",
    )
    return x


def _mul_plain(op: Op, types: Types, plain: Plaintext | None, _: CkksParams) -> ValueType:
    x = types[0]
    _need(plain is not None and plain.level == x.level, op, "a plaintext of equal level")
    assert plain is not None
    return ValueType(x.level, x.scale * plain.scale, x.size)


def _mul(op: Op, types: Types, _: Plaintext | None, __: CkksParams) -> ValueType:
    x, y = types[0], types[-1]
    _need(x.level == y.level and x.size == y.size == 2, op, "operands of one level and two polynomials each")
    return ValueType(x.level, x.scale * y.scale, 3)


def _relinearize(op: Op, types: Types, _: Plaintext | None, __: CkksParams) -> ValueType:
    _need(types[0].size == 3, op, "a product of three polynomials")
    return ValueType(types[0].level, types[0].scale, 2)


def _rescale(op: Op, types: Types, _: Plaintext | None, params: CkksParams) -> ValueType:
    x = types[0]
    _need(x.level > 0, op, "a level above 0")
    return ValueType(x.level - 1, x.scale / params.primes[x.level], x.size)


def _mod_switch(op: Op, types: Types, _: Plaintext | None, __: CkksParams) -> ValueType:
    x = types[0]
    _need(x.level > 0, op, "a level above 0")
    return ValueType(x.level - 1, x.scale, x.size)


def _rotate(op: Op, types: Types, _: Plaintext | None, params: CkksParams) -> ValueType:
    _need(types[0].size == 2, op, "a relinearized operand")
    _need(op.kind is Kind.CONJUGATE or 0 < op.step < params.slots, op, f"a step in 1..{params.slots - 1}")
    return types[0]


def _refresh(op: Op, types: Types, _: Plaintext | None, params: CkksParams) -> ValueType:
    return ValueType(params.max_level, types[0].scale, 2)


def _transform(op: Op, types: Types, plain: Plaintext | None, params: CkksParams) -> ValueType:
    alike = all(t.level == types[0].level and t.same_scale(types[0].scale) for t in types)
    _need(alike and all(t.size == 2 for t in types), op, "inputs of one level and scale, two polynomials each")
    return _mul_plain(op, types, plain, params)


TYPING: dict[Kind, Rule] = {
    Kind.ADD: _add,
    Kind.SUB: _add,
    Kind.NEGATE: _negate,
    Kind.ADD_PLAIN: _add_plain,
    Kind.MUL_PLAIN: _mul_plain,
    Kind.MUL: _mul,
    Kind.SQUARE: _mul,
    Kind.RELINEARIZE: _relinearize,
    Kind.RESCALE: _rescale,
    Kind.MOD_SWITCH: _mod_switch,
    Kind.ROTATE: _rotate,
    Kind.CONJUGATE: _rotate,
    Kind.REFRESH: _refresh,
    Kind.LINEAR_TRANSFORM: _transform,
}
