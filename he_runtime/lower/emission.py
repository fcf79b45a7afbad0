"""A plan under construction: ops, value types and operands, each plaintext stored once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..errors import DoesNotFit
from ..params import CkksParams
from ..plan import Kind, Op, Plaintext, ValueType
from ..plan.ops import RELATIVE_SCALE_TOLERANCE, TYPING
from .diagonals import PackedLinear

__all__ = ["Emission", "VectorPool"]

Vector = npt.NDArray[np.float64]
MIN_RAISE_BITS = 8  # the constant one at a smaller scale is too coarse an integer, unless it is one exactly


class VectorPool:
    """The operands of one problem, each stored once; shared by all candidate plans, which differ in scales only."""

    def __init__(self) -> None:
        self.vectors: list[Vector] = []
        self._ids: dict[bytes, int] = {}
        self._rows: dict[int, tuple[PackedLinear, list[int]]] = {}

    def intern(self, vector: Vector) -> int:
        """Index of the operand; a constant one is stored with period 1."""
        if (vector == vector[0]).all():
            vector = vector[:1]
        key = vector.tobytes()
        if key not in self._ids:
            self._ids[key] = len(self.vectors)
            self.vectors.append(vector)
        return self._ids[key]

    def rows(self, packed: PackedLinear) -> list[int]:
        """Indices of the vectors of a packed layer, hashed once however many candidates ask."""
        if id(packed) not in self._rows:
            self._rows[id(packed)] = (packed, [self.intern(v) for v in packed.vectors])
        return self._rows[id(packed)][1]


@dataclass
class Emission:
    """The growing plan: values, ops and operands, with equal plaintexts shared."""

    params: CkksParams
    pool: VectorPool = field(default_factory=VectorPool)
    values: list[ValueType] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    plaintexts: list[Plaintext] = field(default_factory=list)
    _plain_ids: dict[tuple[int, int, float], int] = field(default_factory=dict)
    _switched: dict[int, int] = field(default_factory=dict)
    _aligned: dict[tuple[int, int, float], int] = field(default_factory=dict)

    def value(self, level: int, scale: float, size: int = 2) -> int:
        self.values.append(ValueType(level, scale, size))
        return len(self.values) - 1

    def plain(self, vector: int, level: int, scale: float) -> int:
        """Index of the plaintext that encodes a vector of the pool."""
        plain = (vector, level, scale)
        if plain not in self._plain_ids:
            self._plain_ids[plain] = len(self.plaintexts)
            self.plaintexts.append(Plaintext(*plain))
        return self._plain_ids[plain]

    def op(
        self, kind: Kind, layer: str, *inputs: int, plaintext: int = -1, step: int = 0, scale: float | None = None
    ) -> int:
        """Append a leaf op; its result type follows from the op table's rule.

        `scale` states the result's scale where it is known apart from rounding: SEAL adds only what agrees to the last bit.
        """
        plain = self.plaintexts[plaintext] if plaintext >= 0 else None
        op = Op(kind, inputs, (len(self.values),), layer, plaintext, step)
        kind_of_result = TYPING[kind](op, [self.values[v] for v in inputs], plain, self.params)
        assert scale is None or kind_of_result.same_scale(scale)
        self.values.append(kind_of_result if scale is None else replace(kind_of_result, scale=scale))
        self.ops.append(op)
        return op.outputs[0]

    def lowered(self, value: int, level: int, layer: str) -> int:
        """The value mod-switched down to `level`; once for all who ask."""
        while self.values[value].level > level:
            if value not in self._switched:
                self._switched[value] = self.op(Kind.MOD_SWITCH, layer, value)
            value = self._switched[value]
        return value

    def aligned(self, value: int, level: int, scale: float, layer: str) -> int:
        """The value at a level and a scale, by the constant one: no level of its own, an error of half an integer at most.

        Towards a lower level the scale may also shrink or hardly change: one of the levels to fall is then a rescale.
        DoesNotFit where neither is possible.
        """
        have = self.values[value]
        if not self.reaches(value, level, scale):
            raise DoesNotFit(
                f"cannot align scales in layer {layer!r}: got 2^{math.log2(have.scale):.1f}, need at least "
                f"{MIN_RAISE_BITS} bits below 2^{math.log2(scale):.1f}; try larger primes"
            )
        key = (value, level, scale)
        if key not in self._aligned:
            self._aligned[key] = self._brought(value, level, scale, layer)
        return self._aligned[key]

    def _brought(self, value: int, level: int, scale: float, layer: str) -> int:
        have = self.values[value]
        if have.same_scale(scale) or _raises(have.scale, scale):
            value = self.lowered(value, level, layer)
            return value if have.same_scale(scale) else self._raised(value, scale, layer)
        value = self.lowered(value, level + 1, layer)
        raised = self._raised(value, scale * self.params.primes[level + 1], layer)
        return self.op(Kind.RESCALE, layer, raised, scale=scale)

    def _raised(self, value: int, scale: float, layer: str) -> int:
        have = self.values[value]
        plain = self.plain(self.pool.intern(np.ones(1)), have.level, scale / have.scale)
        return self.op(Kind.MUL_PLAIN, layer, value, plaintext=plain, scale=scale)

    def reaches(self, value: int, level: int, scale: float) -> bool:
        """Whether `aligned` can bring the value there."""
        have = self.values[value]
        if have.same_scale(scale) or _raises(have.scale, scale):
            return have.level >= level
        return have.level > level and _raises(have.scale, scale * self.params.primes[level + 1])


def _raises(have: float, scale: float) -> bool:
    """Whether the constant one brings a value from one scale to the other: as a large integer, or an exact one."""
    ratio = scale / have
    return ratio >= 2**MIN_RAISE_BITS or (ratio > 1.5 and abs(ratio - round(ratio)) <= ratio * RELATIVE_SCALE_TOLERANCE)
