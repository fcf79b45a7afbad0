"""`secateur plan`: the encrypted program of a model, what it costs and where."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .estimate import prices_of
from .hiding import disclosed, hiding_costs, render_hiding, save_hidden
from .options import Backend, Disclosure, Json, Magnitude
from .output import emit, say
from .plan_batch import batch_record, render_batch
from .plan_text import render_plan

if TYPE_CHECKING:
    from rich.console import Console

    from he_runtime import Plan
    from he_runtime.batching import BatchPlan
    from he_runtime.cost import CostReport, CostTable

__all__ = ["plan", "plan_record"]


def plan(
    model: Annotated[Path, typer.Argument(help="A model directory, to plan now; or a plan directory, to read.")],
    output: Annotated[Path | None, typer.Option(help="Write the plan here.")] = None,
    degree: Annotated[int | None, typer.Option(help="Use this ring degree N only: 4096, 8192, 16384 or 32768.")] = None,
    max_error: Annotated[float | None, typer.Option(help="Bound on the error of an output, in its units.")] = None,
    max_memory: Annotated[
        float | None, typer.Option(help="Refuse a plan whose worker would need more memory than this, in MB.")
    ] = None,
    max_keys: Annotated[
        float | None, typer.Option(help="Have at most so many MB of evaluation keys, at the price of rotations.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Plan for this many queries at once.", min=1)] = None,
    html: Annotated[Path | None, typer.Option(help="Write the plan as a page for people here.")] = None,
    cost_table: Annotated[
        Path | None,
        typer.Option("--table", help="Weigh and price by a table of `secateur calibrate`; else a shipped one."),
    ] = None,
    backend: Backend = None,
    gadget: Annotated[
        str,
        typer.Option(help="Of key switching: seal runs everywhere; hybrid-2 and the like, or auto, on native only."),
    ] = "seal",
    disclosure: Disclosure = "structure",
    magnitude: Magnitude = None,
    primes_per_level: Annotated[
        int, typer.Option(help="Primes that a level takes: 2 or 3 for errors small enough to release decryptions.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Print the encrypted program of a model: cost by layer, keys, memory, then every op with its level and scale.

    With --batch, the batch sizes to choose from. With --disclosure shape, also what hiding the zeros costs.
    """
    from he_runtime import price
    from he_runtime.errors import InputError
    from he_runtime.gadget import SEAL

    from .artifacts import resealed

    prices = prices_of(backend, cost_table)
    limits = _limits(degree, max_error, max_memory, max_keys)
    if gadget != SEAL and (batch is not None or (model / "plan.json").exists()):
        raise InputError(
            f"cannot plan for gadget {gadget!r}: need a model directory and no --batch; try without --gadget"
        )
    hidden = disclosed(disclosure, magnitude)
    if hidden and batch is not None:
        raise InputError("cannot weigh batches for --disclosure shape; try it without --batch")
    batched = None if batch is None else _plan_batch(model, batch, limits, prices)
    if primes_per_level != 1 and batch is not None:
        raise InputError("cannot weigh batches for --primes-per-level; try it without --batch")
    limits |= hidden | ({} if primes_per_level == 1 else {"primes_per_level": primes_per_level})
    chosen = None if gadget == "auto" else gadget
    planned = batched.plan if batched else _plan(model, limits, prices, chosen)
    report = price(planned, prices)
    if output is not None:
        with resealed(output) as sealed:
            save_hidden(planned, output) if hidden else planned.save(output)
        say(f"wrote {output}" + (" and sealed its version anew" if sealed else ""))
    if html is not None:
        _write_page(planned, report, html)
    record = plan_record(planned) | {"cost": report.to_json()}
    if hidden:
        record["hiding"] = hiding_costs(planned, model, prices)
    if batched is None:
        emit(record, as_json, lambda console: _render(console, planned, report, record))
    else:
        weighed = batch_record(batched)
        emit(
            record | {"batching": weighed}, as_json, lambda console: render_batch(console, planned.model_name, weighed)
        )


def _render(console: Console, planned: Plan, report: CostReport, record: dict[str, Any]) -> None:
    if "hiding" in record:
        render_hiding(console, record["hiding"])
    render_plan(console, planned, report)


def _write_page(planned: Plan, report: CostReport, path: Path) -> None:
    from .plan_page import plan_page

    path.write_text(plan_page(planned, report), encoding="utf-8")
    say(f"wrote {path}")


def _plan(directory: Path, limits: dict[str, Any], prices: CostTable, gadget: str | None) -> Plan:
    from he_runtime import CompressedModel, Plan, compile
    from he_runtime.errors import InputError

    if (directory / "plan.json").exists():
        if limits:
            raise InputError(f"cannot plan {directory} again: it is a plan; try the model directory it was made from")
        return Plan.load(directory)
    return compile(CompressedModel.load(directory), **limits, table=prices, gadget=gadget)


def _plan_batch(directory: Path, samples: int, limits: dict[str, Any], prices: CostTable) -> BatchPlan:
    from he_runtime import CompressedModel
    from he_runtime.batching import plan_batch
    from he_runtime.errors import InputError

    if (directory / "plan.json").exists():
        raise InputError(
            f"cannot weigh batches for {directory}: it is a plan; try the model directory it was made from"
        )
    say(f"weighing batch sizes for {samples:,} queries ...")
    return plan_batch(CompressedModel.load(directory), samples, **limits, table=prices)


def _limits(
    degree: int | None, max_error: float | None, max_memory: float | None, max_keys: float | None
) -> dict[str, Any]:
    """What was asked of the plan, as the planner calls it; InputError for what no plan can have."""
    from he_runtime.compile import DEGREES
    from he_runtime.errors import InputError

    if degree is not None and degree not in DEGREES:
        raise InputError(f"cannot plan at N={degree}: need one of {', '.join(map(str, DEGREES))}")
    for option, value in (("--max-error", max_error), ("--max-memory", max_memory), ("--max-keys", max_keys)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"cannot plan for {option} {value}: need a positive number")
    limits = {
        "degrees": None if degree is None else (degree,),
        "max_error": max_error,
        "max_bytes": None if max_memory is None else int(max_memory * 1e6),
        "max_key_bytes": None if max_keys is None else int(max_keys * 1e6),
    }
    return {name: value for name, value in limits.items() if value is not None}


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
        "disclosure": planned.disclosure,
        "sigma": planned.sigma,
        "error_bound": planned.error_bound,
        "layers": [{"name": x.name, "kind": x.kind, "layout": x.layout} for x in planned.layers],
    }
