"""Why a model does not fit: the layer, the levels, bits or bytes that are missing, and the nearest change that would fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from .cost.keys import key_costs
from .cost.memory import layer_plaintext_bytes, memory
from .errors import DoesNotFit, ParameterError
from .lower.levels import readers_of
from .lower.stage_types import PolynomialStage, Stage
from .params import DEGREES, MAX_LOG2_QP
from .plan import Plan

__all__ = [
    "OutOfRange",
    "OverMemory",
    "nearest",
    "out_of_range",
    "require_exactness",
    "require_floor",
    "require_memory",
    "require_width",
    "too_deep",
    "too_wide_output",
]


_FLOOR_MARGIN = 1.5
_SLACK = 1.25  # a search that sees no hope stops at coarser scales


class OutOfRange(DoesNotFit):
    """Values that no modulus of a chain holds, by `missing_bits`."""

    def __init__(self, message: str, missing_bits: float) -> None:
        super().__init__(message)
        self.missing_bits = missing_bits


class OverMemory(DoesNotFit):
    """A plan whose worker or whose keys need `missing_bytes` more than allowed."""

    def __init__(self, message: str, missing_bytes: int) -> None:
        super().__init__(message)
        self.missing_bytes = missing_bytes


def nearest(reasons: Sequence[DoesNotFit | ParameterError]) -> DoesNotFit | ParameterError:
    """Of one refusal per ring, smallest ring first: what needs the least more memory, else what the largest ring lacks."""
    over = [reason for reason in reasons if isinstance(reason, OverMemory)]
    if over:
        return min(over, key=lambda reason: reason.missing_bytes)
    return reasons[-1] if reasons else ParameterError("cannot plan for no ring degree at all; try N=8192")


def too_deep(
    stages: Sequence[Stage], levels: Mapping[str, int], degree: int, base_bits: float, level_bits: float
) -> DoesNotFit:
    """For a ring whose budget, after `base_bits`, lacks some levels of `level_bits` each."""

    def room(ring: int) -> int:
        return max(0, math.floor((MAX_LOG2_QP[ring] - base_bits) / level_bits))

    depth = max(levels.values())
    missing = depth - room(degree)
    layer = _exhausted(list(stages), levels, depth, room(degree))
    larger = next((ring for ring in DEGREES if ring > degree and room(ring) >= depth), None)
    change = f"N={larger}" if larger else _shallower(stages, missing)
    return DoesNotFit(
        f"cannot hold {depth} levels in {MAX_LOG2_QP[degree]} bits: they run out at layer {layer!r}, {missing} missing; "
        f"try {change}"
    )


def _exhausted(stages: list[Stage], levels: Mapping[str, int], depth: int, room: int) -> str:
    """The first layer after which more than `room` levels are gone."""
    for stage in stages:
        below = max((levels[r.name] for r in readers_of(stages, stage.name)), default=0)
        if depth - below > room:
            return stage.layer
    return stages[-1].layer


def _shallower(stages: Sequence[Stage], missing: int) -> str:
    """A lower degree of the costliest polynomial where that gives enough levels, else fewer activations."""
    costliest = max(stages, key=lambda s: s.rescales if isinstance(s, PolynomialStage) else 0)
    left = costliest.rescales - missing
    if isinstance(costliest, PolynomialStage) and left >= 1:
        return f"a polynomial of degree {2**left} or less in layer {costliest.layer!r}"
    return f"{missing} activation{'s' if missing > 1 else ''} fewer"


def out_of_range(layer: str, level: int, need_bits: float, have_bits: float) -> OutOfRange:
    """For values, scale and sign included, that the modulus of their level does not hold."""
    missing = need_bits - have_bits
    return OutOfRange(
        f"cannot hold layer {layer!r}: values need {need_bits:.1f} bits at level {level}, the modulus has {have_bits:.1f}, "
        f"{missing:.1f} missing; try values 2^{math.floor(missing) + 1} times smaller there, or a larger N",
        missing,
    )


def too_wide_output(layer: str, magnitude: float, need_bits: float, have_bits: float) -> OutOfRange:
    """For an output that even the smallest scales do not bring below the largest prime."""
    missing = need_bits - have_bits
    return OutOfRange(
        f"cannot hold the output of layer {layer!r}: values up to 2^{math.log2(magnitude):.1f} need a prime of {need_bits:.1f} "
        f"bits, {missing:.1f} more than there are; try weights 2^{math.ceil(missing)} times smaller there",
        missing,
    )


def require_exactness(plan: Plan, budget: float) -> None:
    """DoesNotFit when the plan's error bound misses the budget."""
    if plan.error_bound <= budget:
        return
    missing = math.log2(plan.error_bound / budget)
    widest = max(plan.layers, key=lambda layer: layer.magnitude)
    larger = next((ring for ring in DEGREES if ring > plan.params.degree), None)
    change = f"N={larger}" if larger else f"a bound of {_SLACK * plan.error_bound:.2g}, or a narrower range there"
    raise DoesNotFit(
        f"cannot hold the error at N={plan.params.degree}: the bound is {plan.error_bound:.3g}, the budget {budget:.3g}, {missing:.1f} bits missing; the "
        f"widest values are those of layer {widest.name!r}; try {change}"
    )


def require_quadratic(stages: Sequence[Stage]) -> None:
    """DoesNotFit for a polynomial activation, whose levels take one prime each."""
    for stage in stages:
        if isinstance(stage, PolynomialStage):
            raise DoesNotFit(
                f"cannot plan layer {stage.layer!r} with several primes per level: got a polynomial of degree "
                f"{len(stage.coefficients) - 1}, need degree 2; try primes_per_level=1"
            )


def require_floor(sigma: float, degree: int, budget: float) -> None:
    """DoesNotFit when no packing on this ring can hold the error, with a margin for what the floor takes for certain."""
    if 6 * sigma > _FLOOR_MARGIN * budget:
        raise DoesNotFit(
            f"cannot hold the error at N={degree}: the bound is at least {6 * sigma:.3g} in any packing, the budget {budget:.3g}; "
            f"try N={2 * degree}"
        )


def require_width(
    stages: Sequence[Stage], source: str, shape: tuple[int, ...], slots: int, limit: int, degree: int
) -> None:
    """DoesNotFit for a tensor that takes more than `limit` ciphertexts, `slots` elements in each, however it is laid out."""
    tensors = [(source, math.prod(shape)), *((s.layer, math.prod(s.shape)) for s in stages)]
    layer, size = max(tensors, key=lambda tensor: tensor[1])
    need = -(-size // slots)
    if need <= limit:
        return
    factor = degree // slots  # of the ring: slots are shared by a batch
    larger = next((ring for ring in DEGREES if ring > degree and size <= limit * (ring // factor)), None)
    change = f"N={larger}" if larger else f"at most {limit * slots:,} elements there"
    raise DoesNotFit(
        f"cannot pack layer {layer!r}: {size:,} elements take {need:,} ciphertexts of {slots:,} slots, {need - limit:,} more "
        f"than the {limit:,} allowed; try {change}"
    )


def require_memory(plan: Plan, max_bytes: int | None, backend: str = "") -> None:
    """OverMemory, naming what takes most and for which layer, when the plan's peak estimate is above `max_bytes`."""
    if max_bytes is None:
        return
    held = memory(plan, backend)
    if held.total <= max_bytes:
        return
    parts = {"encoded weights": held.plaintexts, "keys": held.keys, "ciphertexts": held.ciphertexts}
    part = max(parts, key=lambda name: parts[name])
    raise OverMemory(
        f"cannot run in {max_bytes / 1e6:,.0f} MB of memory: need {held.total / 1e6:,.0f} MB at N={plan.params.degree}, "
        f"{(held.total - max_bytes) / 1e6:,.0f} MB missing; {part} take {parts[part] / 1e6:,.0f} MB, most of them for layer "
        f"{_heaviest(plan, part)!r}; try a limit of {math.ceil(held.total / 1e6)} MB, or fewer diagonals there",
        held.total - max_bytes,
    )


def _heaviest(plan: Plan, part: str) -> str:
    """The layer that needs most of a part of the memory."""
    weight: Counter[str] = Counter()
    if part == "encoded weights":
        weight.update(layer_plaintext_bytes(plan))
    elif part == "keys":
        weight.update(layer for key in key_costs(plan) for layer in key.uses)
    else:
        for op in plan.ops:
            inside = 0 if op.cells is None else len(op.babies) + len(op.groups)
            weight[op.layer] = max(weight[op.layer], len(op.outputs) + inside)
    return weight.most_common(1)[0][0]
