"""What each evaluation key is for, how often it serves, and what it costs to upload."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..plan import Kind, Plan
from ..ring import RELINEARIZATION, KeyRequest, KeySetSpec
from ..wire import key_set_byte_size

__all__ = ["KeyCost", "key_costs"]


@dataclass(frozen=True)
class KeyCost:
    """One key: what it does, its Galois element (0: relinearization), the level it is cut to, its seeded bytes on the wire.

    `uses` counts the operations by layer.
    """

    name: str
    element: int
    level: int
    bytes: int
    uses: Mapping[str, int]


def key_costs(plan: Plan) -> tuple[KeyCost, ...]:
    """Every key that the plan needs, the busiest first. Their bytes and an empty set's make the bytes of the set."""
    names: dict[int, str] = {}
    uses: dict[int, Counter[str]] = {}
    for element, name, layer in _uses(plan):
        names[element] = name
        uses.setdefault(element, Counter())[layer] += 1
    found = [
        KeyCost(names[r.element], r.element, r.level, _wire_bytes(plan, r), dict(uses[r.element]))
        for r in plan.keys.requests
    ]
    return tuple(sorted(found, key=lambda key: (-sum(key.uses.values()), key.element)))


def _uses(plan: Plan) -> Iterator[tuple[int, str, str]]:
    """(element, what it does, layer) of every key switch."""
    params = plan.params
    for op in plan.ops:
        steps: list[int] = []
        if op.kind is Kind.RELINEARIZE:
            yield RELINEARIZATION, "relinearize", op.layer
        elif op.kind is Kind.CONJUGATE:
            yield params.conjugation_element, "conjugate", op.layer
        elif op.kind is Kind.ROTATE:
            steps = [op.step]
        elif op.cells is not None:
            steps = [a for _, a in op.babies] + [b for _, b in op.groups if b]
        for step in (part for whole in steps for part in plan.route(whole)):
            yield params.galois_element(step), f"rotate by {step}", op.layer


def _wire_bytes(plan: Plan, request: KeyRequest) -> int:
    sizes = (key_set_byte_size(KeySetSpec(keys, plan.gadget), plan.params, seeded=True) for keys in ((request,), ()))
    return next(sizes) - next(sizes)
