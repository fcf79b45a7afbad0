"""`secateur sweep`: what sparsity buys under encryption, by its pattern and by the packing; predicted and measured."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .estimate import prices_of
from .kernel_threads import one_thread
from .options import Backend, Json
from .output import emit, say, table
from .sweep_chart import NAMES
from .sweep_log import PointLog
from .sweep_page import COLUMNS, cells, sweep_page, write_png
from .sweep_run import COLUMN, DIAGONAL, Point, Study, Timer, agreement, libraries, points_of

if TYPE_CHECKING:
    from rich.console import Console

    from he_runtime import CompressedModel

__all__ = ["SPARSITIES", "sweep"]

SPARSITIES = (0.0, 0.2, 0.4, 0.6, 0.75, 0.85, 0.9, 0.95, 0.98)
PACKINGS = (DIAGONAL, COLUMN)
_SHOWN = ("pattern", "zeros %", "rotations", "products", "predicted ms", "measured ms", "ratio")
_FILES = {"log": "points.jsonl", "json": "sweep.json", "csv": "sweep.csv", "html": "sweep.html", "png": "sweep.png"}


def sweep(
    network: Annotated[str, typer.Argument(help="A reference network such as digits-mlp, or a model directory.")],
    output: Annotated[Path | None, typer.Option(help="Directory for the results; sweep-NETWORK otherwise.")] = None,
    backend: Backend = None,
    packing: Annotated[list[str] | None, typer.Option(help="diagonal or column; repeatable, both otherwise.")] = None,
    pattern: Annotated[list[str] | None, typer.Option(help="Only these patterns of zeros; repeatable.")] = None,
    sparsity: Annotated[
        list[float] | None, typer.Option(help="Only these shares of zeros, 0 to 0.99; repeatable.")
    ] = None,
    runs: Annotated[int, typer.Option(help="Runs per point, of which the median counts.", min=1)] = 7,
    seconds: Annotated[float, typer.Option(help="Calibration time per ring and chain, in seconds.", min=0.1)] = 10.0,
    seed: Annotated[int, typer.Option(help="Of weights and patterns.", min=0)] = 0,
    predict_only: Annotated[bool, typer.Option("--predict-only", help="Measure no plan, only price it.")] = False,
    cost_table: Annotated[
        Path | None,
        typer.Option("--table", help="Price by this table of `secateur calibrate`; measured now otherwise."),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Forget the points that are there.")] = False,
    as_json: Json = False,
) -> None:
    """Latency against sparsity, for four patterns of zeros of equal size.

    Interrupted, it goes on where it stopped when called again. Writes JSON, CSV, one HTML page and a PNG.
    """
    from he_runtime.cost.calibrate import machine_name

    backend = backend or _backend_of(cost_table)
    points = _points(packing, pattern, sparsity)
    model, name = _model(network, seed)
    directory = output or Path(f"sweep-{name}")
    prices = None if cost_table is None else prices_of(backend, cost_table)
    settings = {
        "network": name,
        "machine": machine_name(),
        "backend": backend,
        "seed": seed,
        "runs": 0 if predict_only else runs,
        "table": prices.digest if prices else None,
        "model": model.digest,
    }
    if restart:
        (directory / _FILES["log"]).unlink(missing_ok=True)
    log = PointLog(directory / _FILES["log"], settings)
    timer = Timer(backend, runs, seconds, measure=not predict_only, table=prices)
    _fill(log, model, seed, points, timer)
    found = [r for point in points for r in log.records if point.matches(r)]
    record = settings | _circumstances(model, backend, timer, points) | {"points": found, "agreement": agreement(found)}
    record["files"] = _write(record, directory)
    emit(record, as_json, lambda console: _render(console, record))


def _points(packing: list[str] | None, pattern: list[str] | None, sparsity: list[float] | None) -> list[Point]:
    from he_runtime.errors import InputError
    from model_prep.packing.patterns import PATTERNS

    packings, patterns, sparsities = packing or PACKINGS, pattern or PATTERNS, sparsity or SPARSITIES
    for what, chosen, known in (("packing", packings, PACKINGS), ("pattern", patterns, PATTERNS)):
        unknown = [x for x in chosen if x not in known]
        if unknown:
            raise InputError(f"cannot sweep {what} {unknown[0]!r}: need one of {', '.join(known)}")
    wrong = [x for x in sparsities if not 0 <= x <= 0.99]
    if wrong:
        raise InputError(f"cannot sweep sparsity {wrong[0]}: need a share of zeros from 0 to 0.99")
    return points_of(dict.fromkeys(packings), tuple(dict.fromkeys(patterns)), sparsities)


def _model(network: str, seed: int) -> tuple[CompressedModel, str]:
    from he_runtime import CompressedModel
    from he_runtime.errors import InputError

    directory = Path(network)
    if (directory / "manifest.json").exists():
        model = CompressedModel.load(directory)
        return model, model.name
    from model_prep.networks import NETWORKS
    from model_prep.reference_models import random_reference

    if network not in NETWORKS:
        raise InputError(f"cannot sweep {network!r}: need a model directory or one of {', '.join(NETWORKS)}")
    return random_reference(network, seed), network


def _backend_of(cost_table: Path | None) -> str:
    """That of the table, else the default one."""
    from he_runtime.backends import default_backend
    from he_runtime.cost import CostTable

    return default_backend() if cost_table is None else CostTable.load(cost_table).backend


def _fill(log: PointLog, model: CompressedModel, seed: int, points: list[Point], timer: Timer) -> None:
    """Add the points that the log does not have yet."""
    missing = [point for point in points if not any(point.matches(r) for r in log.records)]
    if len(missing) < len(points):
        say(f"{len(points) - len(missing)} of {len(points)} points are there already")
    if not missing:
        return
    study = Study.of(model, seed, timer.backend)
    with _progress(len(missing), timer) as done, _resumable(log), one_thread(timer.backend):
        for point in missing:
            done(f"{point.packing} packing, {NAMES.get(point.pattern, point.pattern)}, {point.sparsity:.0%} zeros", 0)
            log.append(timer.record(study, point))
            done("", 1)


@contextmanager
def _resumable(log: PointLog) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say(f"stopped with {len(log.records)} points done; the same command goes on from there")
        raise


@contextmanager
def _progress(total: int, timer: Timer) -> Iterator[Any]:
    """A bar with the point and its phase on standard error; a plain line per point where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("", total=total)
    current = ""

    def update(description: str, advance: int) -> None:
        nonlocal current
        current = description or current
        if description and not console.is_terminal:
            say(f"{description} ...")
        bar.update(task, description=current, advance=advance)

    timer.report = lambda phase: bar.update(task, description=f"{current}: {phase}")
    with bar:
        yield update


def _circumstances(model: CompressedModel, backend: str, timer: Timer, points: list[Point]) -> dict[str, Any]:
    import datetime

    from model_prep.packing.patterns import PATTERNS

    used = {point.pattern for point in points}
    return {
        "weights": str(model.metadata.get("weights", "trained")),
        "threads": 1,
        "libraries": libraries(backend),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "prices": "single operations measured here" if timer.table is None else timer.table.name,
        "packings": list(dict.fromkeys(point.packing for point in points)),
        "patterns": [pattern for pattern in PATTERNS if pattern in used],
    }


def _write(record: dict[str, Any], directory: Path) -> dict[str, str | None]:
    """Everything but the log, beside it; no PNG without matplotlib."""
    files: dict[str, str | None] = {kind: str(directory / name) for kind, name in _FILES.items()}
    (directory / _FILES["json"]).write_text(json.dumps(record, indent=1))
    (directory / _FILES["html"]).write_text(sweep_page(record), encoding="utf-8")
    names = list(dict.fromkeys(name for point in record["points"] for name in point))
    with (directory / _FILES["csv"]).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(record["points"])
    try:
        write_png(record, directory / _FILES["png"])
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        say("wrote no PNG: matplotlib is not installed; try pip install 'secateur[plot]'")
        files["png"] = None
    return files


def _render(console: Console, record: dict[str, Any]) -> None:
    """One table per packing, without what the page says of every point besides."""
    console.print(f"{record['network']} on {record['backend']}, {record['machine']}, one thread")
    shown = [COLUMNS.index(name) for name in _SHOWN]
    for packing in record["packings"]:
        console.print()
        drawn = table(_SHOWN, f"{packing} packing")
        drawn.columns[0].no_wrap = True
        for point in record["points"]:
            if point["packing"] == packing:
                row = cells(point)
                drawn.add_row(*(row[index] for index in shown))
        console.print(drawn)
    agreed = record["agreement"]
    if agreed["n"]:
        console.print()
        console.print(f"predicted against measured: {agreed['mape']:.1%} mean error over {agreed['n']} plans")
    console.print()
    for path in record["files"].values():
        if path is not None:
            console.print(f"wrote {path}", soft_wrap=True)
