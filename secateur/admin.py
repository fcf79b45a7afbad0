"""`secateur admin`: versions, defaults, draining and statistics of a running server, and copies of its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import admin_state
from .admin_channel import Route
from .options import Json
from .output import emit, facts_table, table

if TYPE_CHECKING:
    from rich.console import Console

    from protos.admin import ModelVersion, ServerStats

__all__ = ["app"]

app = typer.Typer(help="Administer a running server (its admin.address), and back up its state.", no_args_is_help=True)
app.command("seal")(admin_state.seal)
app.command("backup")(admin_state.backup)
app.command("restore")(admin_state.restore)

_Model = Annotated[str, typer.Argument(help="The name of the model.")]
_Version = Annotated[str, typer.Argument(help="The version.")]
_KeepDefault = Annotated[bool, typer.Option("--keep-default", help="Leave the default version what it is.")]
_NewDefault = Annotated[str, typer.Argument(help="The version; without one, the latest whichever it is.")]


@app.callback()
def route(
    context: typer.Context,
    address: Annotated[
        str, typer.Option(help="The server's admin.address.", envvar="SECATEUR_ADMIN_ADDRESS", show_default=False)
    ] = "",
    certificate: Annotated[Path | None, typer.Option(help="PEM file of roots to trust; switches TLS on.")] = None,
    client_certificate: Annotated[Path | None, typer.Option(help="PEM certificate to show to the server.")] = None,
    client_key: Annotated[Path | None, typer.Option(help="PEM private key of that certificate.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with an administrator's bearer token.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an answer.", min=0.1)] = 600.0,
) -> None:
    """How to reach the server, for the commands that do."""
    context.obj = Route(address, timeout, certificate, client_certificate, client_key, token_file)


@app.command()
def versions(context: typer.Context, as_json: Json = False) -> None:
    """List every version that the server serves, refused, or could load."""
    from protos.admin import model_version_from_proto
    from protos.gen.secateur.v1 import admin_pb2

    with context.obj.connected() as admin:
        reply = admin.call(admin.stub.ListVersions, admin_pb2.ListVersionsRequest())
    found = [model_version_from_proto(v) for v in reply.versions]
    emit({"versions": [asdict(v) for v in found]}, as_json, lambda console: _render_versions(console, found))


@app.command()
def load(
    context: typer.Context, model: _Model, version: _Version, keep_default: _KeepDefault = False, as_json: Json = False
) -> None:
    """Verify a version below the server's models, load it in every worker, and serve it."""
    from protos.admin import model_version_from_proto
    from protos.gen.secateur.v1 import admin_pb2

    request = admin_pb2.LoadModelRequest(model=model, version=version, keep_default=keep_default)
    with context.obj.connected() as admin:
        loaded = model_version_from_proto(admin.call(admin.stub.LoadModel, request).version)
    said = f"{model} version {version} is served" + (", and the default" if loaded.is_default else "")
    emit(asdict(loaded), as_json, lambda console: console.print(said))


@app.command()
def unload(context: typer.Context, model: _Model, version: _Version, as_json: Json = False) -> None:
    """Serve a version no longer; calls under way on it finish."""
    from protos.gen.secateur.v1 import admin_pb2

    with context.obj.connected() as admin:
        admin.call(admin.stub.UnloadModel, admin_pb2.UnloadModelRequest(model=model, version=version))
    said = f"{model} version {version} is served no longer"
    emit({"model": model, "version": version}, as_json, lambda console: console.print(said))


@app.command("default")
def set_default(context: typer.Context, model: _Model, version: _NewDefault = "", as_json: Json = False) -> None:
    """Set the version that answers calls which name none; also after a restart."""
    from protos.gen.secateur.v1 import admin_pb2

    with context.obj.connected() as admin:
        reply = admin.call(admin.stub.SetDefault, admin_pb2.SetDefaultRequest(model=model, version=version))
    said = f"the default of {model} is version {reply.version}"
    emit({"model": model, "default_version": reply.version}, as_json, lambda console: console.print(said))


@app.command()
def drain(context: typer.Context, as_json: Json = False) -> None:
    """Take no new calls, let those under way finish, then end the server: what SIGTERM does."""
    from protos.gen.secateur.v1 import admin_pb2

    with context.obj.connected() as admin:
        reply = admin.call(admin.stub.Drain, admin_pb2.DrainRequest())
    record = {"calls_under_way": reply.calls_under_way, "drain_seconds": reply.drain_seconds}
    said = f"draining: {reply.calls_under_way} calls under way have up to {reply.drain_seconds:g} s"
    emit(record, as_json, lambda console: console.print(said))


@app.command()
def stats(context: typer.Context, as_json: Json = False) -> None:
    """Show the queue, the workers, the key caches, jobs and calls."""
    from protos.admin import server_stats_from_proto
    from protos.gen.secateur.v1 import admin_pb2

    with context.obj.connected() as admin:
        found = server_stats_from_proto(admin.call(admin.stub.Stats, admin_pb2.StatsRequest()))
    emit(asdict(found), as_json, lambda console: _render_stats(console, found))


def _render_versions(console: Console, found: list[ModelVersion]) -> None:
    drawn = table(("model", "version", "state", "default", "plan", "cause"), text_columns=6)
    for v in found:
        drawn.add_row(v.model, v.version, v.state, "yes" if v.is_default else "", v.plan_digest[:12], v.cause)
    console.print(drawn)


def _render_stats(console: Console, stats: ServerStats) -> None:
    facts = [
        ("build", stats.build),
        ("up for", f"{stats.uptime_seconds:,.0f} s"),
        ("ready", "yes" if not stats.not_ready else "no: " + ", ".join(stats.not_ready)),
        ("calls under way", str(stats.calls_under_way)),
        ("queue", f"{stats.queue_length} jobs, {stats.queue_predicted_ms:,.0f} ms"),
        ("key store", f"{stats.key_store_bytes:,} bytes"),
        ("jobs", _counts(stats.jobs)),
        ("calls", _counts({reason or "OK": count for reason, count in stats.calls.items()})),
    ]
    console.print(facts_table("server", facts))
    drawn = table(("worker", "up", "lost", "key cache bytes", "hits", "misses", "evictions"))
    for w in stats.workers:
        counts = (w.lost, w.key_cache_bytes, w.key_cache_hits, w.key_cache_misses, w.key_cache_evictions)
        drawn.add_row(str(w.worker), "yes" if w.up else "no", *(f"{n:,}" for n in counts))
    console.print(drawn)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
