"""Rotations and plaintext products of our plans beside Orion's packing, for the networks that both have in common.

Run `python benchmarks/opcounts.py [--json]`. Nothing is pruned and nothing is hoisted: every rotation is one key switch.
The reference counts are a recount of Orion's packing rule (Orion, ASPLOS'25) on the same shapes with 8192 slots.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from typing import Any

from he_runtime import compile
from he_runtime.compile import lower
from he_runtime.cost import load_default
from he_runtime.errors import DoesNotFit
from he_runtime.model import CompressedModel
from he_runtime.plan.counts import leaf_totals
from model_prep.reference_models import random_reference

SLOTS = (8192, 4096)


@dataclass(frozen=True)
class Reference:
    """A network of ours, Orion's counts on its shape, and the most that we allow ourselves; all with 8192 slots."""

    network: str
    rotations: int
    products: int
    rotation_limit: int
    product_limit: int


REFERENCES = {
    "lola": Reference("mnist-lola", 61, 250, 50, 157),
    "mlp": Reference("mnist-mlp", 80, 393, 58, 272),
    "lenet": Reference("mnist-lenet", 295, 2970, 285, 2970),
}


def counts(model: CompressedModel, slots: int) -> dict[str, Any]:
    """Rotations and plaintext products of one query in ciphertexts of `slots` slots, and how long planning took.

    `counted` says what was counted: the whole plan; or its packing alone, where no prime chain of that ring holds the
    error budget; or nothing, where not even the levels fit, and then the counts are None.
    """
    start = time.perf_counter()
    try:
        plan = compile(model, degrees=(2 * slots,), table=load_default("tenseal"))
        found, counted = leaf_totals(plan.counts), "plan"
    except DoesNotFit:
        found, counted = _packing_counts(model, slots), "packing"
    if not found:
        counted = "nothing"
    return {
        "rotations": found.get("rotate", 0) if found else None,
        "products": found.get("mul_plain", 0) if found else None,
        "counted": counted,
        "planning_seconds": time.perf_counter() - start,
    }


def _packing_counts(model: CompressedModel, slots: int) -> dict[str, int]:
    try:
        program, _ = lower(model, 2 * slots, 1, load_default("tenseal"))
    except DoesNotFit:
        return {}
    return leaf_totals(program.leaf_counts())


def opcounts(names: tuple[str, ...] = tuple(REFERENCES)) -> dict[str, Any]:
    """Per network our counts with 8192 slots, Orion's, the limits, and ours with 4096 slots."""
    record: dict[str, Any] = {}
    for name in names:
        reference = REFERENCES[name]
        model = random_reference(reference.network)
        ours, small = (counts(model, slots) for slots in SLOTS)
        record[name] = {
            **ours,
            "reference_rotations": reference.rotations,
            "reference_products": reference.products,
            "rotation_limit": reference.rotation_limit,
            "product_limit": reference.product_limit,
            "within_limits": ours["rotations"] <= reference.rotation_limit
            and ours["products"] <= reference.product_limit,
            "slots": SLOTS[0],
            "slots_4096": small,
        }
    return record


def render(record: dict[str, Any]) -> None:
    """The record as a table for a person."""
    print(f"{'':8}{'rotations':>24}{'plaintext products':>32}{'4096 slots':>22}")
    print(
        f"{'network':8}{'ours':>8}{'limit':>8}{'Orion':>8}{'ours':>14}{'limit':>9}{'Orion':>9}{'rot.':>12}{'prod.':>10}"
    )
    for name, row in record.items():
        small = row["slots_4096"]
        print(
            f"{name:8}{row['rotations']:8}{row['rotation_limit']:8}{row['reference_rotations']:8}"
            f"{row['products']:14}{row['product_limit']:9}{row['reference_products']:9}"
            f"{small['rotations'] or '-':>12}{small['products'] or '-':>10}"
        )


def main(arguments: list[str] | None = None) -> None:
    """Count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object")
    parser.add_argument("--network", action="append", choices=sorted(REFERENCES), help="only this one; repeatable")
    options = parser.parse_args(arguments)
    record = opcounts(tuple(options.network or REFERENCES))
    if options.json:
        print(json.dumps(record))
    else:
        render(record)


if __name__ == "__main__":
    main()
