"""`secateur serve`: serve a directory of models, or only check that the configuration would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .output import Json, emit, say

if TYPE_CHECKING:
    from rich.console import Console

    from server import ServerConfig

__all__ = ["serve"]


def serve(
    config: Annotated[
        Path | None, typer.Option(help="A TOML configuration file; SECATEUR_SERVER_* override it.")
    ] = None,
    models: Annotated[Path | None, typer.Option(help="Directory of models, <name>/<version>/.")] = None,
    state: Annotated[Path | None, typer.Option(help="Directory of the clients' evaluation keys.")] = None,
    address: Annotated[str | None, typer.Option(help="host:port to listen on; port 0 takes a free one.")] = None,
    backend: Annotated[str | None, typer.Option(help="Back end of the workers.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM certificate chain; switches TLS on.")] = None,
    private_key: Annotated[Path | None, typer.Option(help="PEM private key of the certificate.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only validate the configuration; exit 1 on a problem.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve compressed models over gRPC. Stops on Ctrl-C after the requests under way."""
    import server

    settings = server.load_config(config)
    settings = _override(settings, models=models, state=state, address=address)
    engine = {k: v for k, v in {"backend": backend, "workers": workers}.items() if v is not None}
    settings = replace(settings, engine=replace(settings.engine, **engine))  # type: ignore[arg-type]
    if certificate is not None or private_key is not None:
        settings = replace(
            settings, tls=replace(settings.tls, enabled=True, certificate=certificate, private_key=private_key)
        )
    problems = server.check(settings)
    if check:
        _report(settings, problems, as_json)
        return
    for problem in problems:
        say(f"error: {problem}")
    if problems:
        raise typer.Exit(1)
    server.run(settings)


def _override(settings: ServerConfig, **values: object) -> ServerConfig:
    return settings.with_(**{name: value for name, value in values.items() if value is not None})


def _report(settings: ServerConfig, problems: list[str], as_json: bool) -> None:
    def render(console: Console) -> None:
        for problem in problems:
            console.print(f"problem: {problem}", markup=False)
        if not problems:
            console.print(f"ready to serve {settings.models} on {settings.address}", markup=False)

    emit({"ok": not problems, "problems": problems, "address": settings.address}, as_json, render)
    if problems:
        raise typer.Exit(1)
