"""`secateur calibrate`: measure a cost table on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json
from .output import emit, facts_table, progress_share, say, table

if TYPE_CHECKING:
    from rich.console import Console

    from he_runtime.cost import CostTable
    from he_runtime.params import CkksParams

__all__ = ["calibrate", "measured_table"]


def calibrate(
    model: Annotated[Path, typer.Argument(help="A model or plan directory: its parameters are what is measured.")],
    output: Annotated[Path, typer.Option(help="Where the table goes.")] = Path("cost-table.json"),
    backend: Annotated[str, typer.Option(help="The back end to measure.")] = "tenseal",
    seconds: Annotated[float, typer.Option(help="Time to spend, in seconds.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Measure the cost of operations here, for `secateur estimate --table`."""
    from .artifacts import load_or_compile

    measured = measured_table(backend, load_or_compile(model).params, seconds)
    measured.save(output)
    say(f"wrote {output}")
    emit(_record(measured, output), as_json, lambda console: _render(console, measured))


def measured_table(
    backend: str, params: CkksParams, seconds: float, only: Collection[tuple[str, int]] | None = None
) -> CostTable:
    """A table measured now, for all operations or `only` some (leaf, level), behind a progress bar."""
    from he_runtime.cost.calibrate import calibrate as measure

    say(f"calibrating for {seconds:.0f} s ...")
    with progress_share("calibrating") as progress:
        return measure(backend, params, seconds=seconds, only=only, progress=lambda _, share: progress(share))


def _record(measured: CostTable, output: Path) -> dict[str, Any]:
    return {
        "file": str(output),
        "backend": measured.backend,
        "machine": measured.machine,
        "date": measured.date,
        "digest": measured.digest,
        "entries": [
            {"leaf": leaf, "N": degree, "level": level, "seconds": entry.seconds, "spread": entry.spread}
            for (leaf, degree, level), entry in sorted(measured.entries.items())
        ],
    }


def _render(console: Console, measured: CostTable) -> None:
    spread = statistics.median(entry.spread for entry in measured.entries.values())
    degrees = ", ".join(str(degree) for degree in sorted({key[1] for key in measured.entries}))
    facts = [
        ("table", measured.name),
        ("ring degree", f"N={degrees}"),
        ("spread", f"{spread:.1%} (median over operations)"),
    ]
    console.print(facts_table("milliseconds per operation", facts))
    console.print()
    levels = sorted({key[2] for key in measured.entries})
    drawn = table(("operation", *(f"level {level}" for level in levels)))
    for leaf, degree in sorted({key[:2] for key in measured.entries}):
        entries = [measured.entries.get((leaf, degree, level)) for level in levels]
        drawn.add_row(leaf, *("" if entry is None else f"{entry.seconds * 1e3:.3f}" for entry in entries))
    console.print(drawn)
