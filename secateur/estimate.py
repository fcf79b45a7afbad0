"""`secateur estimate`: what a model costs before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Disclosure, Json, Magnitude
from .output import counts_table, emit, facts_table, say, table

if TYPE_CHECKING:
    from rich.console import Console

    from he_runtime.cost import CostReport, CostTable

__all__ = ["cost_facts", "estimate", "prices_of"]


def estimate(
    model: Annotated[Path, typer.Argument(help="A model directory, whose plan is priced; or a plan directory.")],
    cost_table: Annotated[
        Path | None, typer.Option("--table", help="A cost table of `secateur calibrate`; else a shipped one.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Back end to price for; else that of the table.")] = None,
    disclosure: Disclosure = "structure",
    magnitude: Magnitude = None,
    as_json: Json = False,
) -> None:
    """Price a model before it runs: milliseconds, operations, bytes. With --disclosure shape, with its zeros hidden."""
    from he_runtime import CompressedModel, compile
    from he_runtime.cost import price

    from .artifacts import load_or_compile
    from .hiding import disclosed

    hidden = disclosed(disclosure, magnitude)
    planned = compile(CompressedModel.load(model), **hidden) if hidden else load_or_compile(model)
    report = price(planned, prices_of(backend, cost_table))
    record = {"model": planned.model_name, "plan_digest": planned.digest, "disclosure": planned.disclosure}
    record |= report.to_json()
    emit(record, as_json, lambda console: _render(console, planned.model_name, report))


def prices_of(backend: str | None, path: Path | None) -> CostTable:
    """The table in a file, or the one that ships with a back end; says on standard error why a table may not hold here.

    PlanError for a table of another back end.
    """
    from he_runtime.backends import default_backend
    from he_runtime.cost import CostTable, load_default

    if path is None:
        return load_default(backend or default_backend())
    found = CostTable.load(path)
    for warning in found.warnings():
        say(f"warning: {warning}")
    return found if backend is None else found.require_backend(backend)


def cost_facts(report: CostReport) -> list[tuple[str, str]]:
    """Latency, bytes, memory and error, with how far they can be trusted."""
    span = f"{report.low_ms:,.0f} to {report.high_ms:,.0f} ms"
    parts = {
        "keys": report.loaded_key_bytes,
        "encoded weights": report.plaintext_bytes,
        "ciphertexts": report.ciphertext_bytes,
    }
    memory = ", ".join(f"{size / 1e6:.0f} MB {name}" for name, size in parts.items())
    return [
        ("latency", f"{report.latency_ms:,.0f} ms, {span} ({report.confidence})"),
        ("cost table", report.table),
        ("input up", f"{report.upload_bytes:,} bytes"),
        ("answer down", f"{report.download_bytes:,} bytes"),
        ("keys, once", f"{report.key_bytes:,} bytes for {len(report.keys)} keys"),
        ("memory", f"{report.peak_bytes / 1e6:.0f} MB at the peak: {memory}"),
        ("levels", f"{report.levels} used, {report.levels_left} left"),
        ("error bound", f"{report.error_bound:.3g} on any output"),
    ]


def _render(console: Console, model: str, report: CostReport) -> None:
    console.print(facts_table(f"estimate for {model}", cost_facts(report)))
    console.print()
    layers = table(("layer", "ms", "at least", "at most", "products", "rotations"))
    for layer in report.layers:
        counts = (layer.products, layer.rotations)
        layers.add_row(
            layer.name, f"{layer.ms:.1f}", f"{layer.low_ms:.1f}", f"{layer.high_ms:.1f}", *(f"{n:,}" for n in counts)
        )
    layers.add_row("in and out", f"{report.upload_ms + report.download_ms:.1f}", "", "", "", "")
    console.print(layers)
    console.print()
    console.print(counts_table({"planned": report.counts}))
