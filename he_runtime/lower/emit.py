"""Stages plus packing plus parameters -> ops: the last step of lowering, and the only one that knows scales.

Scale discipline: every tensor at rest has scale exactly Delta. A linear layer before an activation is encoded so that
the squared value returns to Delta after one rescale: sigma = sqrt(Delta * q). Additions meet at one scale because the
layers before them are told which scale to deliver.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import DoesNotFit
from ..params import CkksParams
from ..plan import Kind, LayerInfo, Op
from .constants import Constants
from .diagonals import PackedLinear
from .emission import Emission, VectorPool
from .levels import is_lazy, stage_levels
from .packing import Packing
from .stages import AddStage, LinearStage, QuadraticStage, Stage

__all__ = ["Scales", "Values", "emit"]

Vector = npt.NDArray[np.float64]
# Index of a tensor's ciphertext -> value. One whose elements are all constant is never computed, and absent.
Values = dict[int, int]


@dataclass(frozen=True)
class Scales:
    """Delta (tensors at rest), the output layer's plaintext scale, and that of an unfolded quadratic's coefficient."""

    delta: float
    last: float
    coefficient: float = 2.0**16


@dataclass(frozen=True)
class Program:
    """What is lowered: stages and their constant elements, the packing, and how many samples share a ciphertext."""

    stages: list[Stage]
    constants: Constants
    packing: Packing
    source: str
    batch: int

    def leaf_counts(self) -> Counter[tuple[str, int]]:
        """(leaf, level) -> how often, border included, before scales are known: alignments and biases are left out."""
        levels = stage_levels(self.stages)
        top = max(levels[s.name] for s in self.stages if self.source in s.inputs)
        counts = Counter({("upload", top): self.packing.input_layout.ciphertexts})
        for stage in self.stages:
            level, ciphertexts = levels[stage.name], self.packing.layouts[stage.name].ciphertexts
            if isinstance(stage, LinearStage):
                found = self.packing.packed[stage.name].diagonals
                counts[Kind.ROTATE, level] += found.rotations
                counts[Kind.MUL_PLAIN, level] += found.products
                counts[Kind.ADD, level] += found.products - found.outputs
                ciphertexts *= not is_lazy(self.stages, stage.name)
            elif isinstance(stage, QuadraticStage):
                counts[Kind.SQUARE if stage.is_square else Kind.MUL, level] += ciphertexts
                counts[Kind.MUL_PLAIN, level] += 0 if stage.is_square else ciphertexts
                counts[Kind.RELINEARIZE, level] += ciphertexts
            else:
                counts[Kind.ADD, level] += ciphertexts
                continue
            counts[Kind.RESCALE, level] += ciphertexts
        return counts


class _Lowering:
    def __init__(self, program: Program, params: CkksParams, scales: Scales, pool: VectorPool) -> None:
        self.stages, self.packing, self.batch = program.stages, program.packing, program.batch
        self.constants, self.scales, self.params = program.constants, scales, params
        self.emission = Emission(params, pool)
        self.levels = stage_levels(self.stages)
        top = max((self.levels[s.name] for s in self.stages if program.source in s.inputs), default=0)
        count = self.packing.input_layout.ciphertexts
        self.tensors: dict[str, Values] = {
            program.source: {k: self.emission.value(top, scales.delta) for k in range(count)}
        }

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
        inputs = {k: e.lowered(v, level, stage.name) for k, v in self.tensors[stage.input].items()}
        if not len(packed.diagonals.cells):
            return {}
        lazy = is_lazy(self.stages, stage.name)
        have = e.values[next(iter(inputs.values()))].scale
        scale = self.target_scale(stage) / have if lazy else self.params.primes[level] * self.scales.delta / have
        outputs = self._transform(stage.name, inputs, packed, level, scale)
        for step in packed.diagonals.folds:
            for k, v in outputs.items():
                turned = e.op(Kind.ROTATE, stage.name, v, step=step * self.batch)
                outputs[k] = e.op(Kind.ADD, stage.name, v, turned)
        outputs = self._biased(stage.name, outputs, packed.bias)
        return outputs if lazy else {k: e.op(Kind.RESCALE, stage.name, v) for k, v in outputs.items()}

    def _transform(self, layer: str, inputs: Values, packed: PackedLinear, level: int, scale: float) -> Values:
        e, found = self.emission, packed.diagonals
        targets, rows = np.unique(found.cells[:, 0], return_inverse=True)
        sources, columns = np.unique(found.cells[:, 1], return_inverse=True)
        plains = [e.plain(vector, level, scale) for vector in e.pool.rows(packed)]
        steps = (self.batch * packed.split.baby, self.batch * packed.split.giant)
        cells = np.stack([rows, columns, *steps, plains], axis=1).astype(np.int64)
        operands = tuple(inputs[int(j)] for j in sources)
        out_scale = e.values[operands[0]].scale * scale
        outputs = {int(i): e.value(level, out_scale) for i in targets}
        e.ops.append(Op(Kind.LINEAR_TRANSFORM, operands, tuple(outputs.values()), layer, cells=cells))
        return outputs

    def _biased(self, layer: str, values: Values, bias: Vector) -> Values:
        return {k: self._shifted(layer, v, bias[k]) for k, v in values.items()}

    def _shifted(self, layer: str, value: int, constant: Vector) -> int:
        """The value plus a plaintext; itself when that is zero."""
        if not constant.any():
            return value
        e, kind = self.emission, self.emission.values[value]
        plain = e.plain(e.pool.intern(constant), kind.level, kind.scale)
        return e.op(Kind.ADD_PLAIN, layer, value, plaintext=plain)

    def _spread(self, tensor: str, values: Vector) -> Vector:
        """Elements -> (ciphertexts, period) in the tensor's layout."""
        layout = self.packing.layouts[tensor]
        return layout.spread(values).reshape(layout.ciphertexts, layout.period)

    def quadratic(self, stage: QuadraticStage) -> Values:
        e, level = self.emission, self.levels[stage.name]
        prime = self.params.primes[level]
        a, b, c = (self._spread(stage.name, v) for v in (stage.a, stage.b, stage.c))
        results = {}
        for k, value in self.tensors[stage.input].items():
            x = e.lowered(value, level, stage.name)
            if stage.is_square:
                product = e.op(Kind.SQUARE, stage.name, e.scaled(x, math.sqrt(self.scales.delta * prime), stage.name))
            else:
                product = self._general(stage.name, x, a[k], b[k], prime)
            results[k] = e.op(Kind.RESCALE, stage.name, e.op(Kind.RELINEARIZE, stage.name, product))
        return self._biased(stage.name, results, c)

    def _general(self, layer: str, x: int, a: Vector, b: Vector, prime: int) -> int:
        """(a*x + b) * x at scale Delta * prime."""
        e, have = self.emission, self.emission.values[x]
        scale = self.scales.delta * prime / have.scale**2
        inner = e.op(Kind.MUL_PLAIN, layer, x, plaintext=e.plain(e.pool.intern(a), have.level, scale))
        return e.op(Kind.MUL, layer, self._shifted(layer, inner, b), x)

    def add(self, stage: AddStage) -> Values:
        e, level = self.emission, self.levels[stage.name]
        sides = [{k: e.lowered(v, level, stage.name) for k, v in self.tensors[name].items()} for name in stage.inputs]
        if not any(sides):
            return {}
        scale = max(e.values[v].scale for side in sides for v in side.values())
        left, right = ({k: e.scaled(v, scale, stage.name) for k, v in side.items()} for side in sides)
        results = {k: e.op(Kind.ADD, stage.name, left[k], right[k]) for k in left.keys() & right.keys()}
        for present, absent in ((left, stage.right), (right, stage.left)):
            constant = self._spread(absent, np.nan_to_num(self.constants.get(absent, np.zeros(0))))
            for k in present.keys() - results.keys():
                results[k] = self._shifted(stage.name, present[k], constant[k])
        return dict(sorted(results.items()))

    def run(self) -> None:
        for stage in self.stages:
            if isinstance(stage, LinearStage):
                self.tensors[stage.name] = self.linear(stage)
            elif isinstance(stage, QuadraticStage):
                self.tensors[stage.name] = self.quadratic(stage)
            else:
                self.tensors[stage.name] = self.add(stage)


def emit(
    program: Program, params: CkksParams, scales: Scales, magnitudes: Mapping[str, float], pool: VectorPool
) -> tuple[Emission, dict[str, Values], tuple[LayerInfo, ...]]:
    """The ops, the values of every tensor, and what listings say of each layer.

    Raises DoesNotFit when a calibrated magnitude (`magnitudes`, per tensor) would overflow its modulus, or when a whole
    output ciphertext depends on no input.
    """
    lowering = _Lowering(program, params, scales, pool)
    lowering.run()
    e, layouts = lowering.emission, program.packing.layouts
    info = []
    for stage in program.stages:
        magnitude = magnitudes.get(stage.name, 1.0)
        squared = isinstance(stage, QuadraticStage)
        for value in lowering.tensors[stage.name].values():
            kind = e.values[value]
            _check_room(params, stage.name, kind.level, kind.scale, magnitude)
            if squared:  # the product before its rescale is the tightest point
                level = kind.level + 1
                _check_room(params, stage.name, level, kind.scale * params.primes[level], magnitude)
        info.append(LayerInfo(stage.name, _kind(stage), layouts[stage.name].describe(), magnitude))
    last = program.stages[-1].name
    if len(lowering.tensors[last]) < layouts[last].ciphertexts:
        raise DoesNotFit(
            f"cannot lower layer {last!r}: an output depends on no input, and SEAL has no encryption of a constant; "
            "try pruning it less, or leave that output out"
        )
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
