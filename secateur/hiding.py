"""What `--disclosure shape` costs: the plan that hides a model's zeros beside the one that shows them."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .output import table

if TYPE_CHECKING:
    from rich.console import Console

    from he_runtime import Plan
    from he_runtime.cost import CostTable

__all__ = ["disclosed", "hiding_costs", "render_hiding", "save_hidden"]


def disclosed(disclosure: str, magnitude: float | None) -> dict[str, Any]:
    """The planner's arguments for the options; nothing for the default. InputError for what has no meaning."""
    from he_runtime.errors import InputError
    from he_runtime.plan import SHAPE, STRUCTURE

    if disclosure not in (STRUCTURE, SHAPE):
        raise InputError(f"cannot plan for --disclosure {disclosure!r}: need {STRUCTURE} or {SHAPE}")
    if magnitude is not None and (disclosure != SHAPE or not 0 < magnitude < 2.0**60):
        raise InputError(f"cannot plan for --magnitude {magnitude:g}: need a positive number and --disclosure {SHAPE}")
    if disclosure == STRUCTURE:
        return {}
    return {"disclosure": disclosure} | ({} if magnitude is None else {"magnitude": magnitude})


def hiding_costs(hidden: Plan, directory: Path, prices: CostTable) -> dict[str, Any]:
    """Both plans in figures: {"shape": {...}, "structure": {...}}; the second is absent where the model has none."""
    from he_runtime import CompressedModel, compile
    from he_runtime.errors import DoesNotFit
    from he_runtime.plan import SHAPE, STRUCTURE

    found = {SHAPE: _figures(hidden, prices)}
    with suppress(DoesNotFit):
        found[STRUCTURE] = _figures(compile(CompressedModel.load(directory), table=prices), prices)
    return found


def save_hidden(plan: Plan, directory: Path) -> None:
    """Write the plan, and as the counts of the dense network, which servers state, its own: it does nothing less."""
    from he_runtime.plan.counts import leaf_totals

    plan.save(directory)
    (directory / "dense_counts.json").write_text(json.dumps(leaf_totals(plan.counts)))


def _figures(plan: Plan, prices: CostTable) -> dict[str, Any]:
    from he_runtime import price

    report = price(plan, prices)
    return {
        "N": plan.params.degree,
        "latency_ms": report.latency_ms,
        "rotations": sum(layer.rotations for layer in report.layers),
        "products": sum(layer.products for layer in report.layers),
        "keys": len(plan.keys.requests),
        "key_bytes": report.key_bytes,
        "upload_bytes": report.upload_bytes,
        "error_bound": plan.error_bound,
    }


def render_hiding(console: Console, found: dict[str, Any]) -> None:
    """One row per plan."""
    drawn = table(
        ("clients can tell", "N", "ms", "rotations", "products", "keys", "MB of keys", "error"), "what it costs"
    )
    for name, figures in found.items():
        drawn.add_row(
            name,
            str(figures["N"]),
            f"{figures['latency_ms']:,.1f}",
            f"{figures['rotations']:,}",
            f"{figures['products']:,}",
            str(figures["keys"]),
            f"{figures['key_bytes'] / 1e6:,.1f}",
            f"{figures['error_bound']:.3g}",
        )
    console.print(drawn)
    console.print()
