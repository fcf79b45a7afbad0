"""Sums, products, quadratics and joins of tensors of one layout, ciphertext by ciphertext.

An absent ciphertext is all constant (constants.py), so a sum with it is a plaintext sum and a product a plaintext product.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..errors import DoesNotFit
from ..plan import Kind
from .emission import MIN_RAISE_BITS
from .lowering import Lowering
from .program import Values
from .stage_types import AddStage, JoinStage, MultiplyStage, QuadraticStage

__all__ = ["add", "join", "multiply", "quadratic"]

Vector = npt.NDArray[np.float64]


def quadratic(low: Lowering, stage: QuadraticStage) -> Values:
    """One product and one rescale; a square needs no plaintext."""
    e, level = low.emission, low.levels[stage.name]
    product, plain, rescale = low.targets.product_of(stage), low.targets.is_plain(stage), bool(stage.rescales)
    a, b, c = (low.spread(stage.name, v) for v in (stage.a, stage.b, stage.c))
    exact = product if low.scales.steps else None  # ciphertexts of several scales are brought to one, to the last bit
    results = {}
    for k, value in low.tensors[stage.input].items():
        if plain:
            x = e.aligned(value, level, low.targets.squared(stage), stage.layer)
            results[k] = low.at_rest(stage.layer, e.op(Kind.SQUARE, stage.layer, x), rescale)
        elif a[k].any():
            x = _coefficient_room(low, value, level, product, stage.layer)
            scaled = low.times(stage.layer, x, a[k], product / e.values[x].scale ** 2)
            inner = low.shifted(stage.layer, scaled, b[k])
            results[k] = low.at_rest(stage.layer, e.op(Kind.MUL, stage.layer, inner, x, scale=exact), rescale)
        elif b[k].any():
            x = e.lowered(value, level, stage.layer)
            scaled = low.times(stage.layer, x, b[k], product / e.values[x].scale, exact)
            results[k] = low.at_rest(stage.layer, scaled, rescale)
    return low.biased(stage.layer, results, c)


def _coefficient_room(low: Lowering, value: int, level: int, product: float, layer: str) -> int:
    """The value at `level`, at a scale whose square leaves room for the coefficient's."""
    e = low.emission
    have = e.values[value]
    if low.scales.steps or product >= have.scale**2 * 2**MIN_RAISE_BITS:
        return e.lowered(value, level, layer)
    return e.aligned(value, level, math.sqrt(product / low.scales.coefficient), layer)


def multiply(low: Lowering, stage: MultiplyStage) -> Values:
    """One product, one relinearization and one rescale per ciphertext; sides at rest cost one plaintext product."""
    e, level = low.emission, low.levels[stage.name]
    product = low.targets.product(level)
    left, right = (low.tensors[name] for name in stage.inputs)
    scales = _sides(low, left, right, level, product, stage.layer)
    results = {}
    for k in sorted(left.keys() & right.keys()):
        x, y = (
            e.aligned(side[k], level, scale, stage.layer) for side, scale in zip((left, right), scales, strict=True)
        )
        results[k] = low.at_rest(stage.layer, e.op(Kind.MUL, stage.layer, x, y))
    for present, absent in ((left, stage.right), (right, stage.left)):
        factor = low.constant(absent)
        for k in present.keys() - (left.keys() & right.keys()):
            if factor[k].any():
                x = e.lowered(present[k], level, stage.layer)
                scaled = low.times(stage.layer, x, factor[k], product / e.values[x].scale)
                results[k] = low.at_rest(stage.layer, scaled)
    return dict(sorted(results.items()))


def _sides(low: Lowering, left: Values, right: Values, level: int, product: float, layer: str) -> tuple[float, float]:
    """The scales at which the two sides meet: as they are if that will do, else one of them changed to fit."""
    e = low.emission
    if not left or not right:
        return 0.0, 0.0
    x, y = next(iter(left.values())), next(iter(right.values()))
    have = e.values[x].scale, e.values[y].scale
    fitted = (product / have[1], product / have[0])
    exact = (have, (fitted[0], have[1]), (have[0], fitted[1]))
    lower = (0, 1, 2) if have[0] <= have[1] else (0, 2, 1)  # raising the smaller keeps both below the modulus
    for scales in (exact[i] for i in lower):
        fits = abs(scales[0] * scales[1] / product - 1) < 2.0**-41
        if fits and e.reaches(x, level, scales[0]) and e.reaches(y, level, scales[1]):
            return scales
    raise DoesNotFit(
        f"cannot multiply in layer {layer!r}: got scales 2^{math.log2(have[0]):.1f} and 2^{math.log2(have[1]):.1f}, need a "
        f"product of 2^{math.log2(product):.1f}; try larger primes"
    )


def add(low: Lowering, stage: AddStage) -> Values:
    sides = _meet(low, stage)
    left, right = sides
    e = low.emission
    results = {k: e.op(Kind.ADD, stage.layer, left[k], right[k]) for k in left.keys() & right.keys()}
    for present, absent in ((left, stage.right), (right, stage.left)):
        constant = low.constant(absent)
        for k in present.keys() - results.keys():
            results[k] = low.shifted(stage.layer, present[k], constant[k])
    return dict(sorted(results.items()))


def join(low: Lowering, stage: JoinStage) -> Values:
    """The ciphertexts of the inputs, numbered anew; no operation unless their scales or levels differ."""
    found: Values = {}
    offset = 0
    for name, side in zip(stage.inputs, _meet(low, stage), strict=True):
        found.update({offset + k: value for k, value in side.items()})
        offset += low.packing.layouts[name].ciphertexts
    return {r: found[k] for r, k in enumerate(stage.sources.tolist()) if k in found}


def _meet(low: Lowering, stage: AddStage | JoinStage) -> list[Values]:
    """The inputs on the stage's level and at one scale: that of all, or what the readers ask for, or what can be reached."""
    e, level = low.emission, low.levels[stage.name]
    sides = [low.tensors[name] for name in stage.inputs]
    heads = [next(iter(side.values())) for side in sides if side]
    if not heads:
        return sides
    have = [e.values[v].scale for v in heads]
    wanted = [*have[: len(set(have)) == 1], low.targets.meeting(stage), max(have), min(have)]
    scale = next((s for s in wanted if all(e.reaches(v, level, s) for v in heads)), wanted[0])
    return [{k: e.aligned(v, level, scale, stage.layer) for k, v in side.items()} for side in sides]
