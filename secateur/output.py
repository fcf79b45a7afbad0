"""What a person or a program sees: tables or one JSON object on standard output, messages and errors on standard error."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["Json", "OneLineErrors", "counts_table", "emit", "facts_table", "progress_bytes", "say", "warnings_as_lines"]

TRACEBACK_VARIABLE = "SECATEUR_TRACEBACK"  # set it to see where an unexpected error came from
WIDTH = 80
_FRAMEWORK = (typer.Exit, typer.Abort, typer.BadParameter.__mro__[2])  # the last is the base of all usage errors

Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on standard output.")]


class OneLineErrors(TyperGroup):
    """A group of commands that ends with one line on standard error and exit code 1 instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            line = _one_line(error)
            if line is None or os.environ.get(TRACEBACK_VARIABLE):
                raise
            say(line)
            raise typer.Exit(1) from None


def _one_line(error: Exception) -> str | None:
    """The message of an error for a person; None for what the framework itself reports or needs."""
    if isinstance(error, _FRAMEWORK):
        return None
    from he_runtime.errors import SecateurError

    if isinstance(error, SecateurError):
        text = error.message
    elif isinstance(error, ModuleNotFoundError) and _extra_of(error.name or ""):
        text = f"cannot run: {error.name} is not installed; try pip install 'secateur[{_extra_of(error.name or '')}]'"
    elif isinstance(error, OSError):
        text = f"cannot run: {error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    else:
        text = f"cannot run: unexpected {type(error).__name__}; set {TRACEBACK_VARIABLE}=1 and report what it shows"
    return "error: " + " ".join(text.split())


def _extra_of(module: str) -> str:
    """The extra of this distribution that brings a missing module; empty for anything else."""
    top = module.partition(".")[0]
    extras = {"torch": "prep", "sklearn": "prep", "tenseal": "client", "platformdirs": "client", "grpc": "client"}
    extras |= {"zstandard": "client", "google": "client", "grpc_status": "client", "cryptography": "server"}
    extras |= {"grpc_health": "server", "grpc_reflection": "server", "Pyfhel": "pyfhel"}
    return extras.get(top, "")


def say(message: str) -> None:
    """One message for a person, on standard error."""
    typer.echo(message, err=True)


def emit(record: Mapping[str, Any], as_json: bool, render: Callable[[Console], None]) -> None:
    """Print the result: one JSON object, or what `render` draws on a console of at least 80 columns."""
    if as_json:
        typer.echo(json.dumps(record, default=_plain, allow_nan=False))
        return
    render(console())


def console() -> Console:
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def facts_table(title: str, facts: Sequence[tuple[str, str]]) -> Table:
    """Two columns: what, and how much."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in facts:
        table.add_row(name, value)
    return table


def counts_table(title: str, columns: Mapping[str, Mapping[str, int]]) -> Table:
    """Operation counts, one row per operation and one column per variant; missing operations are zero."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", pad_edge=False)
    table.add_column("operation")
    for name in columns:
        table.add_column(name, justify="right")
    operations = list(dict.fromkeys(leaf for counts in columns.values() for leaf in counts))
    for leaf in operations:
        table.add_row(leaf, *(f"{counts.get(leaf, 0):,}" for counts in columns.values()))
    return table


@contextmanager
def progress_bytes(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error for a callback (done, total) in bytes; nothing appears before the first call."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(description, total=None, visible=False)
    with bar:
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Show warnings of our own as one line each on standard error, without file names."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        yield


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays, paths and the like, as JSON knows them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
