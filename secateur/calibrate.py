"""`secateur calibrate`: measure a cost table on this machine."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import Json, emit, facts_table, say

if TYPE_CHECKING:
    from rich.console import Console

    from he_runtime.cost import CostTable

__all__ = ["calibrate"]


def calibrate(
    model: Annotated[Path, typer.Argument(help="A model or plan directory: its parameters are what is measured.")],
    output: Annotated[Path, typer.Option(help="Where the table goes.")] = Path("cost-table.json"),
    backend: Annotated[str, typer.Option(help="The back end to measure.")] = "tenseal",
    seconds: Annotated[float, typer.Option(help="Time to spend, in seconds.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Measure what each operation of a plan costs here, for `secateur estimate --table` and engine.cost_table."""
    from he_runtime.cost.calibrate import calibrate as measure

    from .artifacts import load_or_compile

    planned = load_or_compile(model)
    table = measure(backend, planned.params, seconds=seconds)
    table.save(output)
    say(f"wrote {output}")
    emit(_record(table, output), as_json, lambda console: _render(console, table))


def _record(table: CostTable, output: Path) -> dict[str, Any]:
    return {
        "file": str(output),
        "backend": table.backend,
        "machine": table.machine,
        "date": table.date,
        "digest": table.digest,
        "entries": [
            {"leaf": leaf, "N": degree, "level": level, "seconds": entry.seconds, "spread": entry.spread}
            for (leaf, degree, level), entry in sorted(table.entries.items())
        ],
    }


def _render(console: Console, table: CostTable) -> None:
    from rich.table import Table

    spread = statistics.median(entry.spread for entry in table.entries.values())
    console.print(facts_table(table.name, [("spread", f"{spread:.1%} (median over operations)")]))
    drawn = Table(pad_edge=False)
    for column in ("operation", "N", "level", "milliseconds"):
        drawn.add_column(column, justify="left" if column == "operation" else "right")
    for (leaf, degree, level), entry in sorted(table.entries.items()):
        drawn.add_row(leaf, str(degree), str(level), f"{entry.seconds * 1e3:.3f}")
    console.print(drawn)
