"""`secateur audit`: read a server's audit log without the server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json
from .output import emit

if TYPE_CHECKING:
    from rich.console import Console

    from server.identity.audit_chain import Link, Verdict

__all__ = ["app"]

app = typer.Typer(help="Read a server's audit log.", no_args_is_help=True)


@app.callback()
def audit() -> None:
    """Read a server's audit log."""


@app.command()
def verify(
    directory: Annotated[Path, typer.Argument(help="The directory of the log: <state>/audit unless configured.")],
    expect: Annotated[
        str, typer.Option(metavar="SEQ:HASH", help="A record noted elsewhere, which must be in the log.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Check that no record was altered or removed; exit 1 when one was."""
    from server.identity import audit_chain

    if not audit_chain.files_of(directory):
        raise typer.BadParameter(f"{directory} holds no audit log")
    verdict = audit_chain.verify(directory, _link(expect) if expect else None)
    record = {
        "ok": not verdict.problems,
        "problems": verdict.problems,
        "records": verdict.records,
        "first": verdict.first,
        "last": verdict.last.seq,
        "hash": verdict.last.hash,
    }
    emit(record, as_json, lambda console: _render(console, verdict))
    if verdict.problems:
        raise typer.Exit(1)


def _link(text: str) -> Link:
    from server.identity import audit_chain

    seq, colon, digest = text.partition(":")
    if not colon or not seq.isdecimal() or len(digest) != 64:
        raise typer.BadParameter(
            "--expect needs <number>:<64 hexadecimal digits>, as the server's log and `verify` print"
        )
    return audit_chain.Link(int(seq), digest.lower())


def _render(console: Console, verdict: Verdict) -> None:
    for problem in verdict.problems:
        console.print(problem, soft_wrap=True)
    if not verdict.problems:
        last = verdict.last
        console.print(f"{verdict.records} records, {verdict.first} to {last.seq}: whole", soft_wrap=True)
        console.print(f"last record {last.seq}:{last.hash}", soft_wrap=True)
