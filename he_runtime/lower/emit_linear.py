"""Linear stages -> transforms, folds, biases; no rescale where the result may stay unrescaled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..plan import Kind, Op
from .diagonals import PackedLinear
from .joint import JointLayout
from .levels import is_lazy
from .lowering import Lowering
from .program import Values
from .stage_types import LinearStage

__all__ = ["linear"]

Chosen = npt.NDArray[np.int64]  # indices of cells


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
    outputs: Values = {}
    for scale, chosen in _scales(low, stage, lazy, level):
        outputs |= _transform(low, stage.layer, inputs, packed, level, scale, chosen)
    outputs = dict(sorted(outputs.items()))
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


def _scales(low: Lowering, stage: LinearStage, lazy: bool, level: int) -> list[tuple[float, Chosen]]:
    """(scale of the result, which cells): one transform of all, unless rows have steps, and so scales, of their own."""
    cells = low.packing.packed[stage.name].diagonals.cells
    scales = low.targets.integral(stage.name) if low.scales.steps else np.zeros(1)
    if len(scales) > 1:
        return [
            (float(scale), np.flatnonzero(scales[cells[:, 0]] == scale)) for scale in np.unique(scales[cells[:, 0]])
        ]
    return [(low.targets.of(stage.name) if lazy else low.targets.product(level), np.arange(len(cells)))]


def _transform(
    low: Lowering, layer: str, inputs: Values, packed: PackedLinear, level: int, scale: float, chosen: Chosen
) -> Values:
    e, cells, split = low.emission, packed.diagonals.cells[chosen], packed.split
    targets, rows = np.unique(cells[:, 0], return_inverse=True)
    sources, columns = np.unique(cells[:, 1], return_inverse=True)
    operands = tuple(inputs[int(j)] for j in sources)
    factor = scale / e.values[operands[0]].scale
    vectors = e.pool.rows(packed)
    plains = [e.plain(vectors[k], level, factor) for k in chosen.tolist()]
    steps = (low.batch * split.baby[chosen], low.batch * split.giant[chosen])
    cells = np.stack([rows, columns, *steps, plains], axis=1).astype(np.int64)
    outputs = {int(i): e.value(level, scale) for i in targets}
    e.ops.append(Op(Kind.LINEAR_TRANSFORM, operands, tuple(outputs.values()), layer, cells=cells))
    return outputs
