"""Stages plus packing plus parameters -> ops: the last step of lowering, and the only one that knows scales.

Scale discipline: every tensor at rest has scale exactly Delta. A linear layer before an activation is encoded so that
the squared value returns to Delta after one rescale: sigma = sqrt(Delta * q). Additions meet at one scale because the
layers before them are told which scale to deliver.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import DoesNotFit
from ..params import CkksParams
from ..plan import Kind, LayerInfo, Op, Plaintext, ValueType
from ..plan.ops import TYPING
from .diagonals import PackedLinear
from .levels import is_lazy, stage_levels
from .packing import Packing
from .stages import AddStage, LinearStage, QuadraticStage, Stage

__all__ = ["Emission", "Scales", "emit"]

Vector = npt.NDArray[np.float64]
Values = tuple[int, ...]


@dataclass(frozen=True)
class Scales:
    """Delta (tensors at rest), the output layer's plaintext scale, and that of an unfolded quadratic's coefficient."""

    delta: float
    last: float
    coefficient: float = 2.0**16


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
    _plain_ids: dict[Plaintext, int] = field(default_factory=dict)

    def value(self, level: int, scale: float, size: int = 2) -> int:
        self.values.append(ValueType(level, scale, size))
        return len(self.values) - 1

    def plain(self, vector: int, level: int, scale: float) -> int:
        """Index of the plaintext that encodes a vector of the pool."""
        plain = Plaintext(vector, level, scale)
        if plain not in self._plain_ids:
            self._plain_ids[plain] = len(self.plaintexts)
            self.plaintexts.append(plain)
        return self._plain_ids[plain]

    def op(self, kind: Kind, layer: str, *inputs: int, plaintext: int = -1, step: int = 0) -> int:
        """Append a leaf op; its result type follows from the op table's rule."""
        plain = self.plaintexts[plaintext] if plaintext >= 0 else None
        op = Op(kind, inputs, (len(self.values),), layer, plaintext, step)
        self.values.append(TYPING[kind](op, [self.values[v] for v in inputs], plain, self.params))
        self.ops.append(op)
        return op.outputs[0]

    def lowered(self, value: int, level: int, layer: str) -> int:
        """The value mod-switched down to `level`."""
        while self.values[value].level > level:
            value = self.op(Kind.MOD_SWITCH, layer, value)
        return value

    def scaled(self, value: int, scale: float, layer: str) -> int:
        """The value brought to a larger scale by the constant one: no level, an error of half an integer at most."""
        have = self.values[value]
        if have.same_scale(scale):
            return value
        if scale < have.scale * 2**8:
            raise DoesNotFit(
                f"cannot align scales in layer {layer!r}: got 2^{math.log2(have.scale):.1f}, need at least 8 bits below "
                f"2^{math.log2(scale):.1f}; try larger primes"
            )
        one = self.plain(self.pool.intern(np.ones(1)), have.level, scale / have.scale)
        return self.op(Kind.MUL_PLAIN, layer, value, plaintext=one)


class _Lowering:
    def __init__(
        self, stages: list[Stage], packing: Packing, params: CkksParams, scales: Scales, source: str, pool: VectorPool
    ) -> None:
        self.stages, self.packing, self.scales, self.params = stages, packing, scales, params
        self.emission = Emission(params, pool)
        self.levels = stage_levels(stages)
        top = max((self.levels[s.name] for s in stages if source in s.inputs), default=0)
        count = packing.input_layout.ciphertexts
        self.tensors: dict[str, Values] = {source: tuple(self.emission.value(top, scales.delta) for _ in range(count))}

    def target_scale(self, stage: Stage) -> float:
        """The scale that a lazy value must have: what its activation turns back into Delta, or the output's."""
        readers = [s for s in self.stages if stage.name in s.inputs]
        if not readers:
            return self.scales.delta * self.scales.last
        reader = readers[0]
        if isinstance(reader, QuadraticStage):
            prime = self.params.primes[self.levels[reader.name]]
            square = self.scales.delta * prime
            return math.sqrt(square if reader.is_square else square / self.scales.coefficient)
        return self.target_scale(reader)

    def linear(self, stage: LinearStage) -> Values:
        e, packed = self.emission, self.packing.packed[stage.name]
        level = self.levels[stage.name]
        inputs = tuple(e.lowered(v, level, stage.name) for v in self.tensors[stage.input])
        lazy = is_lazy(self.stages, stage.name)
        have = e.values[inputs[0]].scale
        scale = self.target_scale(stage) / have if lazy else self.params.primes[level] * self.scales.delta / have
        outputs = self._transform(stage.name, inputs, packed, level, scale)
        for step in packed.diagonals.folds:
            outputs = tuple(e.op(Kind.ADD, stage.name, v, e.op(Kind.ROTATE, stage.name, v, step=step)) for v in outputs)
        outputs = self._biased(stage.name, outputs, packed.bias)
        return outputs if lazy else tuple(e.op(Kind.RESCALE, stage.name, v) for v in outputs)

    def _transform(self, layer: str, inputs: Values, packed: PackedLinear, level: int, scale: float) -> Values:
        e, found = self.emission, packed.diagonals
        if len(set(found.cells[:, 0].tolist())) != len(packed.bias):
            raise DoesNotFit(f"cannot lower layer {layer!r}: a whole output ciphertext has no weight; try pruning less")
        used = sorted(set(found.cells[:, 1].tolist()))
        renumber = {j: k for k, j in enumerate(used)}
        plains = [e.plain(vector, level, scale) for vector in e.pool.rows(packed)]
        sources = [renumber[j] for j in found.cells[:, 1].tolist()]
        cells = np.stack([found.cells[:, 0], sources, found.split.baby, found.split.giant, plains], axis=1)
        out_scale = e.values[inputs[0]].scale * scale
        outputs = tuple(e.value(level, out_scale) for _ in range(len(packed.bias)))
        operands = tuple(inputs[j] for j in used)
        e.ops.append(Op(Kind.LINEAR_TRANSFORM, operands, outputs, layer, cells=cells))
        return outputs

    def _biased(self, layer: str, outputs: Values, bias: Vector) -> Values:
        e = self.emission
        result = []
        for value, part in zip(outputs, bias, strict=True):
            kind = e.values[value]
            result.append(
                e.op(Kind.ADD_PLAIN, layer, value, plaintext=e.plain(e.pool.intern(part), kind.level, kind.scale))
                if part.any()
                else value
            )
        return tuple(result)

    def quadratic(self, stage: QuadraticStage) -> Values:
        e, level, layout = self.emission, self.levels[stage.name], self.packing.layouts[stage.name]
        prime = self.params.primes[level]
        a, b, c = (layout.spread(v).reshape(layout.ciphertexts, layout.period) for v in (stage.a, stage.b, stage.c))
        results = []
        for k, value in enumerate(self.tensors[stage.input]):
            x = e.lowered(value, level, stage.name)
            if stage.is_square:
                product = e.op(Kind.SQUARE, stage.name, e.scaled(x, math.sqrt(self.scales.delta * prime), stage.name))
            else:
                product = self._general(stage.name, x, a[k], b[k], prime)
            results.append(e.op(Kind.RESCALE, stage.name, e.op(Kind.RELINEARIZE, stage.name, product)))
        return self._biased(stage.name, tuple(results), c)

    def _general(self, layer: str, x: int, a: Vector, b: Vector, prime: int) -> int:
        """(a*x + b) * x at scale Delta * prime."""
        e, have = self.emission, self.emission.values[x]
        scale = self.scales.delta * prime / have.scale**2
        inner = e.op(Kind.MUL_PLAIN, layer, x, plaintext=e.plain(e.pool.intern(a), have.level, scale))
        kind = e.values[inner]
        if b.any():
            inner = e.op(Kind.ADD_PLAIN, layer, inner, plaintext=e.plain(e.pool.intern(b), kind.level, kind.scale))
        return e.op(Kind.MUL, layer, inner, x)

    def add(self, stage: AddStage) -> Values:
        e, level = self.emission, self.levels[stage.name]
        pairs = zip(self.tensors[stage.left], self.tensors[stage.right], strict=True)
        results = []
        for left, right in pairs:
            x, y = (e.lowered(v, level, stage.name) for v in (left, right))
            scale = max(e.values[x].scale, e.values[y].scale)
            results.append(e.op(Kind.ADD, stage.name, e.scaled(x, scale, stage.name), e.scaled(y, scale, stage.name)))
        return tuple(results)

    def run(self) -> None:
        for stage in self.stages:
            if isinstance(stage, LinearStage):
                self.tensors[stage.name] = self.linear(stage)
            elif isinstance(stage, QuadraticStage):
                self.tensors[stage.name] = self.quadratic(stage)
            else:
                self.tensors[stage.name] = self.add(stage)


def emit(
    stages: list[Stage],
    packing: Packing,
    params: CkksParams,
    scales: Scales,
    source: str,
    magnitudes: Mapping[str, float],
    pool: VectorPool,
) -> tuple[Emission, dict[str, Values], tuple[LayerInfo, ...]]:
    """The ops, the values of every tensor, and what listings say of each layer.

    Raises DoesNotFit when a calibrated magnitude (`magnitudes`, per tensor) would overflow its modulus.
    """
    lowering = _Lowering(stages, packing, params, scales, source, pool)
    lowering.run()
    e = lowering.emission
    info = []
    for stage in stages:
        magnitude = magnitudes.get(stage.name, 1.0)
        squared = isinstance(stage, QuadraticStage)
        for value in lowering.tensors[stage.name]:
            kind = e.values[value]
            _check_room(params, stage.name, kind.level, kind.scale, magnitude)
            if squared:  # the product before its rescale is the tightest point
                level = kind.level + 1
                _check_room(params, stage.name, level, kind.scale * params.primes[level], magnitude)
        info.append(LayerInfo(stage.name, _kind(stage), packing.layouts[stage.name].describe(), magnitude))
    return e, lowering.tensors, tuple(info)


def _kind(stage: Stage) -> str:
    if isinstance(stage, QuadraticStage):
        return "square" if stage.is_square else "quadratic"
    return "linear" if isinstance(stage, LinearStage) else "add"


def _check_room(params: CkksParams, layer: str, level: int, scale: float, magnitude: float) -> None:
    need, have = math.log2(scale * max(magnitude, 1e-9) * 2), params.log2_q(level)
    if need >= have:
        raise DoesNotFit(
            f"cannot hold layer {layer!r}: values need {need:.1f} bits at level {level}, the modulus has {have:.1f}; try a "
            "smaller scale, a larger N or a smaller range"
        )
