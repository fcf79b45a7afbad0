"""Linear stages -> transforms, folds, biases; no rescale where the result may stay unrescaled."""

from __future__ import annotations

import numpy as np

from ..plan import Kind, Op
from .diagonals import PackedLinear
from .joint import JointLayout
from .levels import is_lazy
from .lowering import Lowering
from .program import Values
from .stage_types import LinearStage

__all__ = ["linear"]


def linear(low: Lowering, stage: LinearStage) -> Values:
    """One LINEAR_TRANSFORM over every ciphertext of every input, so that giant steps are shared."""
    e, packed = low.emission, low.packing.packed[stage.name]
    level = low.levels[stage.name]
    if not len(packed.diagonals.cells):
        return {}
    operands = _operands(low, stage)
    meet = max(e.values[v].scale for v in operands.values())  # tensors of several levels rest at several scales
    inputs = {k: e.aligned(v, level, meet, stage.layer) for k, v in operands.items()}
    lazy = is_lazy(low.stages, stage.name)
    scale = low.targets.of(stage.name) if lazy else low.targets.product(level)
    outputs = _transform(low, stage.layer, inputs, packed, level, scale)
    for k in outputs:
        for step in packed.diagonals.folds_of(k):
            turned = e.op(Kind.ROTATE, stage.layer, outputs[k], step=step * low.batch)
            outputs[k] = e.op(Kind.ADD, stage.layer, outputs[k], turned)
    outputs = low.biased(stage.layer, outputs, packed.bias)
    return outputs if lazy else {k: low.at_rest(stage.layer, v) for k, v in outputs.items()}


def _operands(low: Lowering, stage: LinearStage) -> Values:
    """The ciphertexts of all inputs, numbered as the packed map sees them."""
    layout = low.packing.operand(stage)[1]
    offsets = layout.offsets if isinstance(layout, JointLayout) else (0,)
    return {
        offset + k: value
        for offset, name in zip(offsets, stage.inputs, strict=True)
        for k, value in low.tensors[name].items()
    }


def _transform(low: Lowering, layer: str, inputs: Values, packed: PackedLinear, level: int, scale: float) -> Values:
    e, found, split = low.emission, packed.diagonals, packed.split
    targets, rows = np.unique(found.cells[:, 0], return_inverse=True)
    sources, columns = np.unique(found.cells[:, 1], return_inverse=True)
    operands = tuple(inputs[int(j)] for j in sources)
    factor = scale / e.values[operands[0]].scale
    plains = [e.plain(vector, level, factor) for vector in e.pool.rows(packed)]
    steps = (low.batch * split.baby, low.batch * split.giant)
    cells = np.stack([rows, columns, *steps, plains], axis=1).astype(np.int64)
    outputs = {int(i): e.value(level, scale) for i in targets}
    e.ops.append(Op(Kind.LINEAR_TRANSFORM, operands, tuple(outputs.values()), layer, cells=cells))
    return outputs
