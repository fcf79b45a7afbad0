"""`secateur client keys`: the secrets here, the evaluation keys at a server, and their end."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json
from .output import emit, table

if TYPE_CHECKING:
    from rich.console import Console

    from client import StoredKeys

__all__ = ["app"]

app = typer.Typer(help="List and delete keys, here and at the server.", no_args_is_help=True)


@app.command("list")
def list_keys(context: typer.Context, as_json: Json = False) -> None:
    """List the secret keys for the server, and the evaluation keys that it has of you."""
    with context.obj.open() as client:
        found = client.keys()
    emit({"keys": [asdict(k) for k in found]}, as_json, lambda console: _render(console, found))


@app.command("delete")
def delete(
    context: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            help="Beginnings (8 digits or more) of a secret's name, which destroys it and all that depends on it, or of a "
            "handle, which deletes that set at the server."
        ),
    ],
    as_json: Json = False,
) -> None:
    """Delete keys at the server first, then here; nothing brings them back."""
    with context.obj.open() as client:
        gone = client.delete_keys(*names)
    said = f"deleted {len(gone)} of your keys"
    emit({"deleted": [asdict(k) for k in gone]}, as_json, lambda console: console.print(said))


def _render(console: Console, found: list[StoredKeys]) -> None:
    drawn = table(("secret", "made", "handle", "where", "expires", "bytes"), text_columns=5)
    for k in found:
        where = "both" if k.here and k.at_server else "here" if k.here else "server"
        drawn.add_row(
            k.params_digest[:12], _day(k.created), k.handle[:12], where, _day(k.expires), f"{k.total_bytes:,}"
        )
    console.print(drawn)


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds)) if seconds else ""
