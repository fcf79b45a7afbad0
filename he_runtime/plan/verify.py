"""The checker that runs after every pass: types, levels, scales, operands and border of a plan."""

from __future__ import annotations

import math

from ..errors import PlanError, Reason
from .ops import TYPING, Kind, Op, Plaintext, ValueType
from .plan import SHAPE, STRUCTURE, Plan

__all__ = ["first_overflow", "verify"]

# (inputs, needs a plaintext); a linear transform has any number of inputs.
_ARITY: dict[Kind, tuple[int, bool]] = {
    Kind.ADD: (2, False),
    Kind.SUB: (2, False),
    Kind.NEGATE: (1, False),
    Kind.ADD_PLAIN: (1, True),
    Kind.MUL_PLAIN: (1, True),
    Kind.MUL: (2, False),
    Kind.SQUARE: (1, False),
    Kind.RELINEARIZE: (1, False),
    Kind.RESCALE: (1, False),
    Kind.MOD_SWITCH: (1, False),
    Kind.ROTATE: (1, False),
    Kind.CONJUGATE: (1, False),
    Kind.REFRESH: (1, False),
}


def verify(plan: Plan) -> Plan:
    """Return the plan unchanged, or raise PlanError naming the op and what it needs."""
    defined = {v for port in plan.inputs for v in port.values}
    starts = set(plan.segments)
    _check_tables(plan)
    _check_room(plan)
    for index, op in enumerate(plan.ops):
        _check_shape(plan, op, defined)
        for output, expected in zip(op.outputs, _types(plan, op), strict=True):
            stated = plan.values[output]
            if output in defined:
                raise PlanError(f"cannot verify op {index} ({op.kind}): value {output} is assigned twice")
            if (stated.level, stated.size) != (expected.level, expected.size) or not stated.same_scale(expected.scale):
                raise PlanError(
                    f"cannot verify op {index} ({op.kind}) of layer {op.layer!r}: states {stated}, rule gives {expected}"
                )
            defined.add(output)
        if op.kind is Kind.REFRESH and index not in starts:
            raise PlanError(f"cannot verify op {index}: a level may rise only at the start of a segment")
    for port in plan.outputs:
        if not set(port.values) <= defined:
            raise PlanError(f"cannot verify output {port.name!r}: some of its values are never computed")
    return plan


def _check_tables(plan: Plan) -> None:
    if plan.disclosure not in (STRUCTURE, SHAPE):
        raise PlanError(
            f"cannot verify plan: it discloses {plan.disclosure[:40]!r}, need {STRUCTURE!r} or {SHAPE!r}",
            Reason.PLAN_VERSION_UNKNOWN,
        )
    if plan.batch < 1 or plan.params.slots % plan.batch:
        raise PlanError(f"cannot verify plan: a batch of {plan.batch} does not divide {plan.params.slots} slots")
    for step, parts in plan.detours.items():
        inside = all(0 < s < plan.params.slots for s in (step, *parts))
        if not inside or sum(parts) % plan.params.slots != step or any(p in plan.detours for p in parts):
            raise PlanError(f"cannot verify plan: a rotation by {step} is no detour by way of {parts}")
    for plain in plan.plaintexts:
        if (
            not 0 <= plain.vector < len(plan.vectors)
            or not 0 <= plain.level <= plan.params.max_level
            or plain.scale <= 0
        ):
            raise PlanError(f"cannot verify plaintext {plain}: no such vector or level, or a bad scale")
        if not plan.vectors[plain.vector].any():
            raise PlanError("cannot verify plan: an all-zero operand should have been dropped at compile time")
    for vector in plan.vectors:
        if vector.ndim != 1 or plan.lane_groups % len(vector):
            raise PlanError(
                f"cannot verify plan: a vector of {len(vector)} does not divide {plan.lane_groups} lane groups"
            )
    for port in (*plan.inputs, *plan.outputs):
        if len(port.values) != len(port.slot_map) or any(not 0 <= v < len(plan.values) for v in port.values):
            raise PlanError(f"cannot verify port {port.name!r}: its values do not match its slot map")


def first_overflow(plan: Plan) -> Plaintext | ValueType | None:
    """The first operand or value whose scale leaves no sign bit below its modulus (SEAL refuses such plaintexts)."""
    items: tuple[Plaintext | ValueType, ...] = (*plan.plaintexts, *plan.values)
    return next((i for i in items if math.log2(i.scale) + 1 >= plan.params.log2_q(i.level)), None)


def _check_room(plan: Plan) -> None:
    item = first_overflow(plan)
    if item is not None:
        raise PlanError(
            f"cannot verify {item}: its scale leaves no sign bit below a modulus of "
            f"{plan.params.log2_q(item.level):.2f} bits"
        )


def _check_shape(plan: Plan, op: Op, defined: set[int]) -> None:
    missing = [v for v in op.inputs if v not in defined]
    if missing or not op.inputs or any(not 0 <= v < len(plan.values) for v in op.outputs):
        raise PlanError(
            f"cannot verify op {op.kind} of layer {op.layer!r}: values {missing or op.outputs} are not defined"
        )
    if op.kind is Kind.LINEAR_TRANSFORM:
        _check_cells(plan, op)
        return
    inputs, plain = _ARITY[op.kind]
    if len(op.inputs) != inputs or len(op.outputs) != 1 or (0 <= op.plaintext < len(plan.plaintexts)) != plain:
        raise PlanError(
            f"cannot verify op {op.kind} of layer {op.layer!r}: need {inputs} inputs, one output, plaintext={plain}"
        )


def _check_cells(plan: Plan, op: Op) -> None:
    cells = op.cells
    if cells is None or cells.ndim != 2 or cells.shape[1] != 5 or not len(cells):
        raise PlanError(f"cannot verify transform of layer {op.layer!r}: need cells of five columns")
    upper = (len(op.outputs), len(op.inputs), plan.params.slots, plan.params.slots, len(plan.plaintexts))
    if cells.min() < 0 or (cells.max(axis=0) >= upper).any() or len(set(cells[:, 0].tolist())) != len(op.outputs):
        raise PlanError(
            f"cannot verify transform of layer {op.layer!r}: a cell points outside, or an output has no cell"
        )


def _types(plan: Plan, op: Op) -> list[ValueType]:
    types = [plan.values[v] for v in op.inputs]
    if op.kind is not Kind.LINEAR_TRANSFORM:
        plain = plan.plaintexts[op.plaintext] if op.plaintext >= 0 else None
        return [TYPING[op.kind](op, types, plain, plan.params)]
    assert op.cells is not None
    plains = {plan.plaintexts[int(p)] for p in op.cells[:, 4]}
    if len({(p.level, p.scale) for p in plains}) != 1:
        raise PlanError(f"cannot verify transform of layer {op.layer!r}: its plaintexts differ in level or scale")
    return [TYPING[op.kind](op, types, next(iter(plains)), plan.params)] * len(op.outputs)
