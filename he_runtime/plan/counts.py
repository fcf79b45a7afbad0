"""Planned leaf operations in closed form.

Independent of any evaluator: executed counters come from the leaf routines themselves, and the two must agree. A backend
expands LINEAR_TRANSFORM by its own rule: into rotations, products (none by a sign) and sums, or, on the native kernel, into the
stages of one fused call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .ops import Kind, Op

if TYPE_CHECKING:
    from .plan import Plan

__all__ = [
    "CONSTANT_PRODUCT",
    "FLAT_PRODUCT",
    "FUSED",
    "FUSED_LEAVES",
    "layer_counts",
    "leaf_totals",
    "plan_counts",
    "product_leaf",
    "products",
    "rotations",
]

Counts = Counter[tuple[str, int]]

FUSED = frozenset({"native"})  # backends with a fused transform

FLAT_PRODUCT, CONSTANT_PRODUCT = "flat_product", "constant_product"

# Its stages, per call: an input cut into digits; a baby step; a product with an operand, summed in the extended basis, or
# in the ciphertexts' own where there is no baby step, or where besides every operand is one integer; a giant step; an
# output divided by the special primes.
FUSED_LEAVES = ("decompose", "hoisted", "product", FLAT_PRODUCT, CONSTANT_PRODUCT, "giant", "divide")


def plan_counts(plan: Plan, backend: str = "") -> Counts:
    """(leaf, level of the operand) -> how often, on a backend; by default on one without a fused transform."""
    return _count(plan, plan.ops, backend in FUSED)


def layer_counts(plan: Plan, backend: str = "") -> dict[str, Counts]:
    """The same per layer, in plan order."""
    layers: dict[str, list[Op]] = {}
    for op in plan.ops:
        layers.setdefault(op.layer, []).append(op)
    return {name: _count(plan, ops, backend in FUSED) for name, ops in layers.items()}


def leaf_totals(counts: Counts) -> dict[str, int]:
    """Counts summed over the levels: {"rotate": 31, ...}, in a fixed order."""
    totals: Counter[str] = Counter()
    for (leaf, _), n in counts.items():
        totals[leaf] += n
    return {leaf: totals[leaf] for leaf in (*(kind.value for kind in Kind), *FUSED_LEAVES) if totals[leaf]}


def rotations(totals: Mapping[str, int]) -> int:
    """Automorphisms with a key switch each, hoisted or not."""
    return sum(totals.get(leaf, 0) for leaf in ("rotate", "hoisted", "giant"))


def products(totals: Mapping[str, int]) -> int:
    """Products with a plaintext."""
    return sum(totals.get(leaf, 0) for leaf in ("mul_plain", "product", FLAT_PRODUCT, CONSTANT_PRODUCT))


def _count(plan: Plan, ops: Iterable[Op], fused: bool) -> Counts:
    counts: Counts = Counter()
    for op in ops:
        level = plan.values[op.inputs[0]].level
        for leaf, n in _fused(plan, op) if fused and plan.is_direct(op) else _leaves(plan, op):
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
    yield Kind.ROTATE.value, sum(len(plan.route(step)) for _, step in (*op.babies, *op.groups) if step)
    signs = np.array([plan.signs.get(p, 0) for p in op.cells[:, 4].tolist()], dtype=np.int64)
    yield Kind.MUL_PLAIN.value, int((signs == 0).sum())
    # What has the sign -1 is summed by itself, and taken away from the rest of its group.
    negative, others = (_groups(op, signs == -1), _groups(op, signs != -1))
    yield Kind.SUB.value, len(negative & others)
    yield Kind.NEGATE.value, len(negative - others)
    # Every term but the first of each output joins by one addition or subtraction.
    yield Kind.ADD.value, len(signs) - len(op.outputs) - len(negative & others)


def _groups(op: Op, chosen: npt.NDArray[np.bool_]) -> set[tuple[int, int]]:
    """(output, giant step) of the chosen cells."""
    assert op.cells is not None
    return {(i, b) for i, b in op.cells[chosen][:, [0, 3]].tolist()}


def product_leaf(plan: Plan, op: Op) -> str:
    """Which of the products a fused transform makes."""
    assert op.cells is not None
    if op.babies:
        return "product"
    vectors = (plan.vectors[plan.plaintexts[k].vector] for k in set(op.cells[:, 4].tolist()))
    return CONSTANT_PRODUCT if all(len(vector) == 1 for vector in vectors) else FLAT_PRODUCT


def _fused(plan: Plan, op: Op) -> Iterator[tuple[str, int]]:
    assert op.cells is not None
    giants = sum(1 for _, step in op.groups if step)
    yield "decompose", len({j for j, _ in op.babies})
    yield "hoisted", len(op.babies)
    yield product_leaf(plan, op), len(op.cells)
    yield "giant", giants
    if op.babies or giants:
        yield "divide", len(op.outputs)
