"""`secateur serve`: serve a directory of models, or only check that the configuration would."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json
from .output import emit, say

if TYPE_CHECKING:
    from rich.console import Console

    from server import ServerConfig

__all__ = ["serve"]


def serve(
    config: Annotated[
        Path | None, typer.Option(help="A TOML configuration file; SECATEUR_SERVER_* override it.")
    ] = None,
    models: Annotated[Path | None, typer.Option(help="Directory of models, <name>/<version>/.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="Directory of the server's own state: keys, jobs, audit log, operands.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="host:port to listen on; port 0 takes a free one.")] = None,
    backend: Annotated[str | None, typer.Option(help="Back end of the workers.")] = None,
    workers: Annotated[
        str | None,
        typer.Option(metavar="N|ray|ray:N", help="How many workers; or replicas of Ray Serve, see docs/operating.md."),
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM certificate chain; switches TLS on.")] = None,
    private_key: Annotated[Path | None, typer.Option(help="PEM private key of the certificate.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="PEM roots of client certificates; no connection without one then.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only validate the configuration; exit 1 on a problem.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve compressed models over gRPC until Ctrl-C, or only --check."""
    import server
    from server.scale.backends import with_workers

    settings = _override(server.load_config(config), models=models, state=state, address=address)
    settings = replace(settings, engine=_override(settings.engine, backend=backend))
    if workers is not None:
        settings = replace(settings, engine=with_workers(settings.engine, workers))
    settings = replace(settings, tls=_override(settings.tls, certificate=certificate, private_key=private_key))
    if certificate is not None or private_key is not None:
        settings = replace(settings, tls=replace(settings.tls, enabled=True))
    if client_ca is not None:
        settings = replace(settings, tls=replace(settings.tls, client_ca=client_ca, client_auth="required"))
        if settings.identity.mode == "anonymous":  # who demands certificates wants to know whose they are
            settings = replace(settings, identity=replace(settings.identity, mode="mtls"))
    logging.getLogger("secateur.server").addHandler(logging.NullHandler())  # what is wrong is said once, below
    problems = server.check(settings)
    if check:
        _report(settings, problems, as_json)
    for problem in problems:
        say(f"error: {problem}")
    if problems:
        raise typer.Exit(1)
    if not check:
        server.run(settings, lambda address: _announce(settings, address, as_json))


def _override(settings: Any, **values: object) -> Any:
    """A frozen dataclass with the values that were given on the command line."""
    return replace(settings, **{name: value for name, value in values.items() if value is not None})


def _report(settings: ServerConfig, problems: list[str], as_json: bool) -> None:
    def render(console: Console) -> None:
        if not problems:
            console.print(f"ready to serve {settings.models} on {settings.address}", soft_wrap=True)

    emit({"ok": not problems, "problems": problems, "address": settings.address}, as_json, render)


def _announce(settings: ServerConfig, address: str, as_json: bool) -> None:
    """Where calls are taken, once they are; with port 0 this is the only way to know."""
    if as_json:
        emit({"address": address, "tls": settings.tls.enabled}, True, lambda console: None)
    else:
        say(f"serving {settings.models} on {address} {'with' if settings.tls.enabled else 'without'} TLS; Ctrl-C stops")
