"""`secateur plan` on a terminal: what the plan costs and where, its levels as a staircase, its keys, then every op."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from .estimate import cost_facts
from .output import facts_table, table

if TYPE_CHECKING:
    from rich.console import Console

    from he_runtime import Plan
    from he_runtime.cost import CostReport

__all__ = ["render_plan"]

_SHOWN_KEYS = 5


def render_plan(console: Console, plan: Plan, report: CostReport) -> None:
    """Facts, layers and the busiest keys as tables, then the listing."""
    console.print(facts_table(f"plan of {plan.model_name}", cost_facts(report)))
    console.print()
    _render_layers(console, report)
    console.print()
    _render_keys(console, report)
    console.print()
    _print_listing(console, plan.listing())


def _render_layers(console: Console, report: CostReport) -> None:
    """One row per layer: levels, a step for each that is left and a hollow one for each that is used up here."""
    drawn = table(("layer", "levels", "rotations", "products", "weights", "ms", "share"), text_columns=2)
    for layer in report.layers:
        drawn.add_row(
            layer.name,
            "■" * layer.levels_left + "□" * (layer.level - layer.levels_left) + f" {layer.levels_left}",
            f"{layer.rotations:,}",
            f"{layer.products:,}",
            f"{layer.plaintext_bytes / 1e6:,.1f} MB",
            f"{layer.ms:,.1f}",
            _share(layer.ms, report),
        )
    border = report.upload_ms + report.download_ms
    drawn.add_row("in and out", "", "", "", "", f"{border:,.1f}", _share(border, report))
    console.print(drawn)


def _share(ms: float, report: CostReport) -> str:
    return f"{ms / report.latency_ms:.1%}"


def _render_keys(console: Console, report: CostReport) -> None:
    drawn = table(("key", "times", "level", "upload"))
    for key in report.keys[:_SHOWN_KEYS]:
        drawn.add_row(key.name, f"{sum(key.uses.values()):,}", str(key.level), f"{key.bytes / 1e6:,.1f} MB")
    rest = report.keys[_SHOWN_KEYS:]
    if rest:
        times, size = sum(sum(key.uses.values()) for key in rest), sum(key.bytes for key in rest)
        drawn.add_row(f"{len(rest)} more", f"{times:,}", "", f"{size / 1e6:,.1f} MB")
    console.print(drawn)


def _print_listing(console: Console, listing: str) -> None:
    """One line per op; where a terminal is narrower, it goes on further to the right."""
    for line in listing.splitlines():
        if console.is_terminal and len(line) > console.width:
            line = textwrap.fill(line, console.width, subsequent_indent=" " * 8)
        console.print(line, soft_wrap=True)
