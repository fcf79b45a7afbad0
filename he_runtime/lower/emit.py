"""Stages plus packing plus parameters -> ops: the last step of lowering, and the only one that knows scales.

Scale discipline: every tensor at rest has exactly the scale of its level, Delta for short; a linear layer before an activation or a product is encoded
so that the result returns to Delta after one rescale (targets.py). Additions meet at one scale because the layers
before them are told which scale to deliver.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..params import CkksParams
from ..plan import LayerInfo
from ..refusals import out_of_range
from .emission import VectorPool
from .emit_elementwise import add, join, multiply, quadratic
from .emit_linear import linear
from .emit_polynomial import polynomial
from .gather import GatheredLayout
from .lowering import Lowering
from .program import Program, Scales, Values
from .stage_types import AddStage, JoinStage, LinearStage, MultiplyStage, PolynomialStage, QuadraticStage, Stage

__all__ = ["Program", "Scales", "Values", "emit", "require_room"]

# One row per kind of stage.
_EMIT: dict[type, Callable[..., Values]] = {
    LinearStage: linear,
    QuadraticStage: quadratic,
    PolynomialStage: polynomial,
    AddStage: add,
    MultiplyStage: multiply,
    JoinStage: join,
}


def emit(
    program: Program,
    params: CkksParams,
    scales: Scales,
    magnitudes: Mapping[str, float],
    pool: VectorPool,
    slot_peaks: Mapping[str, float],
) -> tuple[Lowering, tuple[LayerInfo, ...]]:
    """The ops and the values of every tensor, and what listings say of each layer.

    Raises DoesNotFit when a calibrated magnitude (`magnitudes`, per tensor; `slot_peaks`, partial sums beside it) would
    overflow its modulus.
    """
    low = Lowering(program, params, scales, pool)
    info = []
    for stage in program.stages:
        low.tensors[stage.name] = _EMIT[type(stage)](low, stage)
        magnitude = magnitudes.get(stage.name, 1.0)
        require_room(low, stage, max(magnitude, slot_peaks.get(stage.name, 0.0)))
        layout = program.packing.layouts[stage.name].describe()
        if program.source in stage.inputs and isinstance(program.packing.input_layout, GatheredLayout):
            layout = f"{layout}; {program.packing.input_layout.describe()}"
        if stage.layer == stage.name:  # others belong to a layer whose last stage follows
            info.append(LayerInfo(stage.layer, _kind(stage), layout, magnitude))
    return low, tuple(info)


def _kind(stage: Stage) -> str:
    if isinstance(stage, QuadraticStage):
        return "square" if stage.is_square else "quadratic"
    return type(stage).__name__.removesuffix("Stage").lower()


def require_room(low: Lowering, stage: Stage, magnitude: float) -> None:
    """DoesNotFit where values of that magnitude would overflow the stage's modulus."""
    for value in low.tensors[stage.name].values():
        _check_value(low, stage, value, magnitude)


def _check_value(low: Lowering, stage: Stage, value: int, magnitude: float) -> None:
    kind = low.emission.values[value]
    _check_room(low.params, stage.layer, kind.level, kind.scale, magnitude)
    if isinstance(stage, QuadraticStage | MultiplyStage | PolynomialStage) and stage.rescales:
        # the product before its rescale is the tightest point
        level = kind.level + low.program.width
        taken = math.prod(low.params.primes[kind.level + 1 : level + 1])
        _check_room(low.params, stage.layer, level, kind.scale * taken, magnitude)


def _check_room(params: CkksParams, layer: str, level: int, scale: float, magnitude: float) -> None:
    need, have = math.log2(scale * max(magnitude, 1e-9) * 2), params.log2_q(level)
    if need >= have:
        raise out_of_range(layer, level, need, have)
