"""What a person or a program sees: tables or one JSON object on standard output, messages on standard error."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn
    from rich.table import Table

__all__ = [
    "counts_table",
    "emit",
    "facts_table",
    "progress_bytes",
    "progress_share",
    "say",
    "table",
    "warnings_as_lines",
]

WIDTH = 80  # of output that goes to a file or a pipe


def say(message: str) -> None:
    """One message for a person, on standard error."""
    typer.echo(message, err=True)


def emit(record: Mapping[str, Any], as_json: bool, render: Callable[[Console], None]) -> None:
    """Print the result: one JSON object, or what `render` draws."""
    from rich.console import Console

    if as_json:
        typer.echo(json.dumps(record, default=_plain, allow_nan=False))
    else:
        width = None if sys.stdout.isatty() else WIDTH
        render(Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False))


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays, paths and the like, as JSON knows them."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def table(columns: Sequence[str], title: str = "", text_columns: int = 1) -> Table:
    """An empty table of the one style that all commands share; after `text_columns`, columns hold numbers."""
    from rich import box
    from rich.table import Table

    drawn = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for k, name in enumerate(columns):
        drawn.add_column(name, justify="left" if k < text_columns else "right")
    return drawn


def facts_table(title: str, facts: Sequence[tuple[str, str]]) -> Table:
    """Two columns: what, and how much."""
    drawn = table(("", ""), title, text_columns=2)
    drawn.show_header = False
    drawn.columns[0].style, drawn.columns[0].no_wrap = "bold", True
    for fact in facts:
        drawn.add_row(*fact)
    return drawn


def counts_table(columns: Mapping[str, Mapping[str, int]]) -> Table:
    """Operation counts, one row per operation and one column per variant that has any."""
    variants = {name: counts for name, counts in columns.items() if counts}
    drawn = table(("operation", *variants))
    for leaf in dict.fromkeys(leaf for counts in variants.values() for leaf in counts):
        drawn.add_row(leaf, *(f"{counts.get(leaf, 0):,}" for counts in variants.values()))
    return drawn


@contextmanager
def progress_bytes(description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for a callback (done, total) in bytes; nothing appears before the first call."""
    from rich.progress import DownloadColumn

    with _progress(description, DownloadColumn()) as update:
        yield update


@contextmanager
def progress_share(description: str) -> Iterator[Callable[[float], None]]:
    """A progress bar for a callback (share done, 0 to 1); nothing appears before the first call."""
    from rich.progress import TaskProgressColumn

    with _progress(description, TaskProgressColumn()) as update:
        yield lambda share: update(share, 1.0)


@contextmanager
def _progress(description: str, amount: ProgressColumn) -> Iterator[Callable[[float, float], None]]:
    """A bar on standard error, only where a person looks at it, and gone afterwards."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), amount)
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
