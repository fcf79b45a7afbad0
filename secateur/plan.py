"""`secateur plan` and `secateur estimate`: the encrypted program of a model, and what it costs before it runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import Json, counts_table, emit, facts_table, say

if TYPE_CHECKING:
    from rich.console import Console

    from he_runtime import Plan
    from he_runtime.cost import CostReport

__all__ = ["estimate", "plan", "plan_record"]

Model = Annotated[Path, typer.Argument(help="A model directory (manifest.json ...), or a plan directory.")]


def plan(
    model: Model,
    output: Annotated[Path | None, typer.Option(help="Write the plan here.")] = None,
    degree: Annotated[int | None, typer.Option(help="Use this ring degree N only: 4096, 8192, 16384 or 32768.")] = None,
    max_error: Annotated[float | None, typer.Option(help="Bound on the error of an output, in its units.")] = None,
    as_json: Json = False,
) -> None:
    """Plan a compressed model, and print the encrypted program: ops, levels, scales, keys."""
    from he_runtime import compile
    from he_runtime.compile import DEGREES
    from he_runtime.errors import InputError

    from .artifacts import load_model

    if degree is not None and degree not in DEGREES:
        raise InputError(f"cannot plan at N={degree}: need one of {', '.join(map(str, DEGREES))}")
    if max_error is not None and not (math.isfinite(max_error) and max_error > 0):
        raise InputError(f"cannot plan for --max-error {max_error}: need a positive number")
    planned = compile(load_model(model), degrees=DEGREES if degree is None else (degree,), max_error=max_error)
    if output is not None:
        planned.save(output)
        say(f"wrote {output}")
    emit(plan_record(planned), as_json, lambda console: console.print(planned.listing(), markup=False, soft_wrap=True))


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
    model: Model,
    table: Annotated[
        Path | None, typer.Option(help="A cost table from `secateur calibrate`; else a shipped one.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="The back end to price for, by the table that ships for it.")
    ] = "tenseal",
    as_json: Json = False,
) -> None:
    """Price a plan from a cost table: milliseconds, operation counts and bytes, before anything runs."""
    from he_runtime.cost import CostTable, load_default, price

    from .artifacts import load_or_compile

    planned = load_or_compile(model)
    report = price(planned, load_default(backend) if table is None else CostTable.load(table))

    def render(console: Console) -> None:
        console.print(facts_table(f"estimate for {planned.model_name}", _facts(report)))
        console.print()
        console.print(counts_table("operations", {"planned": report.counts}))

    emit({"model": planned.model_name, "plan_digest": planned.digest, **report.to_json()}, as_json, render)


def _facts(report: CostReport) -> list[tuple[str, str]]:
    return [
        (
            "latency",
            f"{report.latency_ms:.0f} ms, {report.low_ms:.0f} to {report.high_ms:.0f} ms ({report.confidence})",
        ),
        ("cost table", report.table),
        ("input up", f"{report.upload_bytes:,} bytes"),
        ("answer down", f"{report.download_bytes:,} bytes"),
        ("keys, once", f"{report.key_bytes:,} bytes"),
        ("memory", f"{report.peak_bytes:,} bytes at the peak, {report.plaintext_bytes:,} of it plaintexts"),
        ("error bound", f"{6 * report.sigma:.3g} per output (6 sigma)"),
    ]
