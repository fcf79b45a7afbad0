"""`secateur plan` and `secateur estimate`: the encrypted program of a model, and what it costs before it runs."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json
from .output import counts_table, emit, facts_table, say, table
from .plan_batch import batch_record, render_batch

if TYPE_CHECKING:
    from rich.console import Console

    from he_runtime import Plan
    from he_runtime.batching import BatchPlan
    from he_runtime.cost import CostReport, CostTable

__all__ = ["estimate", "plan", "plan_record"]


def plan(
    model: Annotated[Path, typer.Argument(help="A model directory, to plan now; or a plan directory, to read.")],
    output: Annotated[Path | None, typer.Option(help="Write the plan here.")] = None,
    degree: Annotated[int | None, typer.Option(help="Use this ring degree N only: 4096, 8192, 16384 or 32768.")] = None,
    max_error: Annotated[float | None, typer.Option(help="Bound on the error of an output, in its units.")] = None,
    batch: Annotated[int | None, typer.Option(help="Plan for this many queries at once.", min=1)] = None,
    html: Annotated[Path | None, typer.Option(help="Write the plan as a page for people here.")] = None,
    cost_table: Annotated[
        Path | None,
        typer.Option("--table", help="Weigh and price by a table of `secateur calibrate`; else a shipped one."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the encrypted program of a model: ops, levels, scales, keys. With --batch, the batch sizes to choose from."""
    prices = _prices("tenseal", cost_table)
    batched = None if batch is None else _plan_batch(model, batch, degree, max_error, prices)
    planned = batched.plan if batched else _plan(model, degree, max_error, prices)
    if output is not None:
        planned.save(output)
        say(f"wrote {output}")
    if html is not None:
        _write_page(planned, prices, html)
    if batched is None:
        emit(plan_record(planned), as_json, lambda console: _print_listing(console, planned.listing()))
    else:
        weighed = batch_record(batched)
        record = plan_record(planned) | {"batching": weighed}
        emit(record, as_json, lambda console: render_batch(console, planned.model_name, weighed))


def _prices(backend: str, path: Path | None) -> CostTable:
    from he_runtime.cost import CostTable, load_default

    return load_default(backend) if path is None else CostTable.load(path)


def _write_page(planned: Plan, prices: CostTable, path: Path) -> None:
    from he_runtime.cost import price

    from .plan_page import plan_page

    path.write_text(plan_page(planned, price(planned, prices)), encoding="utf-8")
    say(f"wrote {path}")


def _print_listing(console: Console, listing: str) -> None:
    """One line per op; where a terminal is narrower, it goes on further to the right."""
    for line in listing.splitlines():
        if console.is_terminal and len(line) > console.width:
            line = textwrap.fill(line, console.width, subsequent_indent=" " * 8)
        console.print(line, soft_wrap=True)


def _plan(directory: Path, degree: int | None, max_error: float | None, prices: CostTable) -> Plan:
    from he_runtime import CompressedModel, Plan, compile
    from he_runtime.errors import InputError

    degrees = _degrees(degree, max_error)
    if (directory / "plan.json").exists():
        if degree is not None or max_error is not None:
            raise InputError(f"cannot plan {directory} again: it is a plan; try the model directory it was made from")
        return Plan.load(directory)
    return compile(CompressedModel.load(directory), degrees=degrees, max_error=max_error, table=prices)


def _plan_batch(
    directory: Path, samples: int, degree: int | None, max_error: float | None, prices: CostTable
) -> BatchPlan:
    from he_runtime import CompressedModel
    from he_runtime.batching import plan_batch
    from he_runtime.errors import InputError

    degrees = _degrees(degree, max_error)
    if (directory / "plan.json").exists():
        raise InputError(
            f"cannot weigh batches for {directory}: it is a plan; try the model directory it was made from"
        )
    say(f"weighing batch sizes for {samples:,} queries ...")
    return plan_batch(CompressedModel.load(directory), samples, degrees=degrees, max_error=max_error, table=prices)


def _degrees(degree: int | None, max_error: float | None) -> tuple[int, ...]:
    """The ring degrees to try; InputError for options that no plan can have."""
    from he_runtime.compile import DEGREES
    from he_runtime.errors import InputError

    if degree is not None and degree not in DEGREES:
        raise InputError(f"cannot plan at N={degree}: need one of {', '.join(map(str, DEGREES))}")
    if max_error is not None and not (math.isfinite(max_error) and max_error > 0):
        raise InputError(f"cannot plan for --max-error {max_error}: need a positive number")
    return DEGREES if degree is None else (degree,)


def plan_record(planned: Plan) -> dict[str, Any]:
    """What a program may want to know of a plan."""
    from he_runtime.plan.counts import leaf_totals

    params = planned.params
    return {
        "model": planned.model_name,
        "model_digest": planned.model_digest,
        "plan_digest": planned.digest,
        "N": params.degree,
        "log2_qp": params.log2_qp,
        "prime_bits": [math.log2(q) for q in params.primes],
        "special_prime_bits": [math.log2(q) for q in params.special],
        "gadget": planned.gadget,
        "keys": len(planned.keys.requests),
        "plaintexts": len(planned.plaintexts),
        "ops": len(planned.ops),
        "counts": leaf_totals(planned.counts),
        "sigma": planned.sigma,
        "error_bound": planned.error_bound,
        "layers": [{"name": x.name, "kind": x.kind, "layout": x.layout} for x in planned.layers],
    }


def estimate(
    model: Annotated[Path, typer.Argument(help="A model directory, whose plan is priced; or a plan directory.")],
    cost_table: Annotated[
        Path | None, typer.Option("--table", help="A cost table of `secateur calibrate`; else a shipped one.")
    ] = None,
    backend: Annotated[str, typer.Option(help="Back end whose shipped table to price by.")] = "tenseal",
    as_json: Json = False,
) -> None:
    """Price a model before it runs: milliseconds, operations, bytes."""
    from he_runtime.cost import price

    from .artifacts import load_or_compile

    planned = load_or_compile(model)
    report = price(planned, _prices(backend, cost_table))
    record = {"model": planned.model_name, "plan_digest": planned.digest, **report.to_json()}
    emit(record, as_json, lambda console: _render_estimate(console, planned.model_name, report))


def _render_estimate(console: Console, model: str, report: CostReport) -> None:
    span = f"{report.low_ms:.0f} to {report.high_ms:.0f} ms"
    facts = [
        ("latency", f"{report.latency_ms:.0f} ms, {span} ({report.confidence})"),
        ("cost table", report.table),
        ("input up", f"{report.upload_bytes:,} bytes"),
        ("answer down", f"{report.download_bytes:,} bytes"),
        ("keys, once", f"{report.key_bytes:,} bytes"),
        (
            "memory",
            f"{report.peak_bytes / 1e6:.0f} MB at the peak, {report.plaintext_bytes / 1e6:.0f} MB of it weights",
        ),
        ("error bound", f"{6 * report.sigma:.3g} per output (6 sigma)"),
    ]
    console.print(facts_table(f"estimate for {model}", facts))
    console.print()
    layers = table(("layer", "ms", "products", "rotations"))
    for layer in report.layers:
        counts = (layer.counts.get("mul_plain", 0), layer.counts.get("rotate", 0))
        layers.add_row(layer.name, f"{layer.ms:.1f}", *map(str, counts))
    layers.add_row("in and out", f"{report.upload_ms + report.download_ms:.1f}", "", "")
    console.print(layers)
    console.print()
    console.print(counts_table({"planned": report.counts}))
