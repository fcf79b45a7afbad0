"""`secateur client`: what the client library does, from the command line."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from . import client_jobs, client_keys
from .client_connection import (
    Certificate,
    ClientCertificate,
    ClientKey,
    Connection,
    Home,
    Model,
    Retries,
    Server,
    Strict,
    Timeout,
    TokenFile,
    Version,
)
from .options import Json
from .output import counts_table, emit, facts_table, table
from .predict import InputFile, run_predict

if TYPE_CHECKING:
    from rich.console import Console

    from he_runtime.client_spec import ClientSpec
    from protos.native import CostEstimate, ModelSummary

__all__ = ["app"]

app = typer.Typer(help="Ask a server: models, predictions, jobs; and manage the keys for it.", no_args_is_help=True)
app.add_typer(client_keys.app, name="keys")
app.command("submit")(client_jobs.submit)
app.command("jobs")(client_jobs.jobs)
app.command("watch")(client_jobs.watch)
app.command("result")(client_jobs.result)
app.command("cancel")(client_jobs.cancel)


@app.callback()
def connection(
    context: typer.Context,
    server: Server = "localhost:50051",
    certificate: Certificate = None,
    client_certificate: ClientCertificate = None,
    client_key: ClientKey = None,
    token_file: TokenFile = None,
    home: Home = None,
    timeout: Timeout = 300.0,
    retries: Retries = 5,
) -> None:
    """How to reach the server, for the commands that do."""
    context.obj = Connection(server, certificate, client_certificate, client_key, token_file, home, timeout, retries)


@app.command()
def models(context: typer.Context, as_json: Json = False) -> None:
    """List the models that the server offers."""
    with context.obj.open() as client:
        found = client.models()
    emit({"models": [asdict(m) for m in found]}, as_json, lambda console: _render_models(console, found))


@app.command()
def spec(context: typer.Context, model: Model, version: Version = None, as_json: Json = False) -> None:
    """Show what the server asks of a client for a model, once it has been checked: shapes, parameters, keys, labels."""
    from he_runtime.wire import key_set_byte_size

    with context.obj.open() as client:
        found = client.spec(model, version)
    size = key_set_byte_size(found.keys, found.params, seeded=True)
    emit(_spec_record(found, size), as_json, lambda console: _render_spec(console, found, size))


@app.command()
def estimate(context: typer.Context, model: Model, version: Version = None, as_json: Json = False) -> None:
    """Show what the server says that one prediction costs."""
    with context.obj.open() as client:
        found = client.estimate(model, version)
    emit(asdict(found), as_json, lambda console: _render_estimate(console, found))


@app.command()
def predict(
    context: typer.Context,
    model: Model,
    input_file: InputFile,
    version: Version = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Encrypt an input or a batch, have it evaluated, and decrypt the answer; `secateur predict` is the short form."""
    run_predict(context.obj, model, Path(input_file), version, strict, as_json)


def _render_models(console: Console, found: list[ModelSummary]) -> None:
    drawn = table(("model", "default", "versions"), text_columns=3)
    for m in found:
        drawn.add_row(m.name, m.default_version, ", ".join(m.versions))
    console.print(drawn)


def _spec_record(found: ClientSpec, key_bytes: int) -> dict[str, object]:
    return {
        "model": found.model,
        "version": found.version,
        "plan_digest": found.plan_digest,
        "params": found.params.name,
        "params_digest": found.params.digest,
        "degree": found.params.degree,
        "input": {"name": found.input.name, "shape": found.input.shape, "batch": found.input.batch},
        "output": {"name": found.output.name, "shape": found.output.shape},
        "range": [found.low, found.high],
        "labels": found.labels,
        "post_processing": found.post_processing,
        "error_bound": found.error_bound,
        "keys": len(found.keys.requests),
        "key_bytes": key_bytes,
    }


def _render_spec(console: Console, found: ClientSpec, key_bytes: int) -> None:
    labels = ", ".join(found.labels[:12]) + (", ..." if len(found.labels) > 12 else "")
    facts = [
        ("parameters", f"{found.params.name}, ring degree {found.params.degree}"),
        ("input", f"{found.input.name} {found.input.shape}, {found.input.batch} per ciphertext"),
        ("range", f"{found.low:g} to {found.high:g}"),
        ("output", f"{found.output.name} {found.output.shape}, {found.post_processing}"),
        ("labels", labels or "none"),
        ("error bound", f"{found.error_bound:.3g} per output"),
        ("keys", f"{len(found.keys.requests)}, {key_bytes:,} bytes"),
    ]
    console.print(facts_table(f"{found.model} version {found.version}", facts))


def _render_estimate(console: Console, found: CostEstimate) -> None:
    facts = [
        ("time", f"{found.predicted_ms:,.1f} ms ({found.low_ms:,.1f} to {found.high_ms:,.1f})"),
        ("by", f"{found.table_name}, {found.confidence}"),
        ("bytes", f"{found.up_bytes:,} up, {found.down_bytes:,} down, {found.key_bytes:,} of keys"),
        ("error bound", f"{found.error_bound:.3g} per output"),
    ]
    console.print(facts_table(f"{found.model} version {found.version}", facts))
    console.print(counts_table({"plan": found.counts, "dense": found.dense_counts}))
