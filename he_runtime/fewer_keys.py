"""Fewer evaluation keys for a little time: a rotation that is rarely needed is made of two whose keys exist anyway.

Every step costs a key that the client makes and uploads and the server keeps; every detour costs one more rotation
wherever its step is used. (Choosing which Galois keys to hold: HElib's rotation strategies, Halevi-Shoup, CRYPTO'18.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from .plan import Kind, Plan
from .refusals import OverMemory
from .wire import key_set_byte_size

__all__ = ["with_fewer_keys"]


def with_fewer_keys(plan: Plan, most_bytes: int) -> Plan:
    """The plan with detours for the steps that are used least, until its keys fit `most_bytes` on the wire (seeded).

    OverMemory when no further step is the sum of two others. The predicted error is that of the plan given: predict anew.
    """
    while (size := key_set_byte_size(plan.keys, plan.params, seeded=True)) > most_bytes:
        found = _cheapest_detour(plan)
        if found is None:
            raise OverMemory(
                f"cannot hold the evaluation keys at N={plan.params.degree} in {most_bytes:,} bytes: got {size:,} with every step "
                f"that is the sum of two others replaced; try a budget of {size:,}",
                size - most_bytes,
            )
        step, parts = found
        plan = replace(plan, detours={**plan.detours, step: parts})
    return plan


def _cheapest_detour(plan: Plan) -> tuple[int, tuple[int, int]] | None:
    """The step whose replacement adds least work, weighing a rotation by its key's limbs, and two steps that make it."""
    work, levels = Counter[int](), dict[int, int]()
    for step, level in _rotations(plan):
        work[step] += (level + 1) ** 2
        levels[step] = max(levels.get(step, 0), level)
    needed = {part for parts in plan.detours.values() for part in parts}
    for step in sorted(work.keys() - plan.detours.keys() - needed, key=lambda s: (work[s], s)):
        kept = work.keys() - plan.detours.keys() - {step}
        pairs = ((a, (step - a) % plan.params.slots) for a in sorted(kept))
        pairs = ((a, b) for a, b in pairs if b in kept)
        # A part that is cut below this level would have to grow, and growing may cost more than the step saves.
        best = min(pairs, key=lambda p: sum(max(0, levels[step] - levels[part]) for part in p), default=None)
        if best is not None and all(levels[part] >= levels[step] for part in best):
            return step, best
    return None


def _rotations(plan: Plan) -> Iterator[tuple[int, int]]:
    """(step, level) of every rotation, before detours."""
    for op in plan.ops:
        level = plan.values[op.inputs[0]].level
        if op.kind is Kind.ROTATE:
            yield op.step, level
        elif op.cells is not None:
            yield from ((step, level) for _, step in (*op.babies, *op.groups) if step)
