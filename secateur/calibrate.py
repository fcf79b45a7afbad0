"""`secateur calibrate`: measure a cost table on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Backend, Json
from .output import emit, facts_table, progress_share, say, table

if TYPE_CHECKING:
    from rich.console import Console

    from he_runtime.cost import CostTable
    from he_runtime.params import CkksParams

__all__ = ["calibrate", "measured_table"]


def calibrate(
    model: Annotated[
        Path | None, typer.Argument(help="A model or plan directory whose parameters are measured, at every level.")
    ] = None,
    degree: Annotated[
        list[int] | None,
        typer.Option(help="Without a model: these ring degrees, at three levels each; all by default."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Where the table goes.")] = Path("cost-table.json"),
    backend: Backend = None,
    seconds: Annotated[float, typer.Option(help="Time to spend, in seconds.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Measure the cost of operations here, for `secateur estimate --table`."""
    from he_runtime.backends import default_backend
    from he_runtime.errors import InputError

    from .artifacts import load_or_compile

    backend = backend or default_backend()
    if model is None:
        measured = _surveyed(backend, degree, seconds)
    elif degree:
        raise InputError(
            f"cannot calibrate {model} at N={degree[0]}: its plan has a ring of its own; try without --degree"
        )
    else:
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


def _surveyed(backend: str, degrees: list[int] | None, seconds: float) -> CostTable:
    """A table of several rings, or of all, measured now behind a progress bar."""
    from he_runtime.cost.survey import RINGS, survey

    chosen = degrees or list(RINGS)
    say(f"calibrating {len(chosen)} rings for {seconds:.0f} s ...")
    with progress_share("calibrating") as progress:
        return survey(backend, chosen, seconds, progress)


def _record(measured: CostTable, output: Path) -> dict[str, Any]:
    return {
        "file": str(output),
        "backend": measured.backend,
        "threads": measured.threads,
        "machine": measured.machine,
        "libraries": dict(measured.libraries),
        "date": measured.date,
        "digest": measured.digest,
        "entries": [
            {"leaf": leaf, "N": degree, "level": level, "seconds": entry.seconds, "spread": entry.spread}
            for (leaf, degree, level), entry in sorted(measured.entries.items())
        ],
        "formulas": [
            {"leaf": leaf, "call": fit.call, "butterfly": fit.butterfly, "element": fit.element, "error": fit.error}
            for leaf, fit in sorted(measured.fits.items())
        ],
    }


def _render(console: Console, measured: CostTable) -> None:
    spread = statistics.median(entry.spread for entry in measured.entries.values())
    rings = sorted({key[1] for key in measured.entries})
    degrees, several = ", ".join(map(str, rings)), len(rings) > 1
    facts = [
        ("table", measured.name),
        ("ring degree", f"N={degrees}"),
        ("spread", f"{spread:.1%} (median over operations)"),
    ]
    console.print(facts_table("milliseconds per operation", facts))
    console.print()
    levels = sorted({key[2] for key in measured.entries})
    columns = ("operation", *(["N"] if several else []), *(f"level {level}" for level in levels), "formula")
    drawn = table(columns, text_columns=1)
    for leaf, degree in sorted({key[:2] for key in measured.entries}):
        entries = [measured.entries.get((leaf, degree, level)) for level in levels]
        cells = ["" if entry is None else f"{entry.seconds * 1e3:.3f}" for entry in entries]
        drawn.add_row(leaf, *([str(degree)] if several else []), *cells, f"{measured.fits[leaf].error:.0%} off")
    console.print(drawn)
