"""Planned leaf operations in closed form.

Independent of any evaluator: executed counters come from the leaf routines themselves, and the two must agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .ops import Kind, Op

if TYPE_CHECKING:
    from .plan import Plan

__all__ = ["layer_counts", "leaf_totals", "plan_counts"]

Counts = Counter[tuple[str, int]]


def plan_counts(plan: Plan) -> Counts:
    """(leaf, level of the operand) -> how often."""
    return _count(plan, plan.ops)


def layer_counts(plan: Plan) -> dict[str, Counts]:
    """The same per layer, in plan order."""
    layers: dict[str, list[Op]] = {}
    for op in plan.ops:
        layers.setdefault(op.layer, []).append(op)
    return {name: _count(plan, ops) for name, ops in layers.items()}


def leaf_totals(counts: Counts) -> dict[str, int]:
    """Counts summed over the levels: {"rotate": 31, ...}, in a fixed order."""
    totals: Counter[str] = Counter()
    for (leaf, _), n in counts.items():
        totals[leaf] += n
    return {kind.value: totals[kind.value] for kind in Kind if totals[kind.value]}


def _count(plan: Plan, ops: Iterable[Op]) -> Counts:
    counts: Counts = Counter()
    for op in ops:
        level = plan.values[op.inputs[0]].level
        for leaf, n in _leaves(plan, op):
            if n:
                counts[leaf, level] += n
    return counts


def _leaves(plan: Plan, op: Op) -> Iterator[tuple[str, int]]:
    if op.kind is Kind.ROTATE:
        yield Kind.ROTATE.value, len(plan.route(op.step))
        return
    if op.kind is not Kind.LINEAR_TRANSFORM:
        yield op.kind.value, 1
        return
    assert op.cells is not None
    cells = len(op.cells)
    yield Kind.ROTATE.value, sum(len(plan.route(step)) for _, step in (*op.babies, *op.groups) if step)
    yield Kind.MUL_PLAIN.value, cells
    yield Kind.ADD.value, cells - len(op.outputs)  # every product but the first of each output joins by one addition
