"""Ciphertext memory of a run where freed buffers are kept for the next of the same size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ..plan import Op, Plan

__all__ = ["most_alive", "value_bytes"]


def most_alive(plan: Plan, scratch: Callable[[Op], Counter[int]]) -> int:
    """Bytes: for every size the most that are alive at once, values and what each op works in (`scratch`: by bytes)."""
    alive: Counter[int] = Counter()
    most: Counter[int] = Counter()

    def take(sizes: Counter[int]) -> None:
        alive.update(sizes)
        for size in sizes:
            most[size] = max(most[size], alive[size])

    for port in plan.inputs:
        take(Counter(value_bytes(plan, value) for value in port.values))
    for index, op in enumerate(plan.ops):
        take(Counter(value_bytes(plan, value) for value in op.outputs))
        within = scratch(op)
        take(within)
        alive.subtract(within)
        for value in set(op.inputs):
            if plan.last_use[value] == index:
                alive[value_bytes(plan, value)] -= 1
    return sum(size * count for size, count in most.items())


def value_bytes(plan: Plan, value: int) -> int:
    """Of one ciphertext of the plan."""
    kind = plan.values[value]
    return kind.size * (kind.level + 1) * plan.params.degree * 8
