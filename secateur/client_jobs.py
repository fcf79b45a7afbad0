"""`secateur client submit|jobs|watch|result|cancel`: evaluations that outlive the command.

A job is addressed by its name, which may be shown: the id, a capability, stays in the 0600 file beside the key.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .client_connection import Model, Strict, Version
from .options import Json
from .output import emit, progress_bytes, table, warnings_as_lines
from .predict import InputFile, read_input, show_answer

if TYPE_CHECKING:
    from rich.console import Console

    from client import Job
    from protos.native import JobStatus

__all__ = ["cancel", "jobs", "result", "submit", "watch"]

_Job = Annotated[str, typer.Argument(help="The job's name, as `submit` and `jobs` print it.")]
_Wait = Annotated[float | None, typer.Option(help="Seconds to wait for its end; without limit otherwise.", min=0.0)]


def submit(
    context: typer.Context,
    model: Model,
    input_file: InputFile,
    version: Version = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Encrypt an input and begin a job; prints its name, by which any later command finds it."""
    values = read_input(input_file)
    with warnings_as_lines(), context.obj.open() as client, progress_bytes("uploading keys") as upload:
        job = client.submit(model, values, version=version, strict=strict, progress=upload)
    emit(_record(job), as_json, lambda console: console.print(job.name))


def jobs(context: typer.Context, as_json: Json = False) -> None:
    """List the jobs that were submitted from here to this server."""
    with context.obj.open() as client:
        found = client.jobs()
    emit({"jobs": [_record(job) for job in found]}, as_json, lambda console: _render_jobs(console, found))


def watch(context: typer.Context, job: _Job, wait: _Wait = None, as_json: Json = False) -> None:
    """Follow a job layer by layer to its end; with --json, print how it ended."""
    from rich.console import Console

    with context.obj.open() as client:
        for status in client.job(job).watch(timeout=wait):
            if not as_json:
                emit({}, False, lambda console, status=status: console.print(_line(status)))  # type: ignore[misc]
    if as_json:
        emit({"job": job, **asdict(status)}, True, Console.print)
    if status.reason:
        raise typer.Exit(1)


def result(context: typer.Context, job: _Job, wait: _Wait = None, as_json: Json = False) -> None:
    """Wait for a job's end, fetch its result and decrypt it."""
    with context.obj.open() as client:
        found = client.job(job)
        answer = found.result(timeout=wait)
    show_answer(found.model, answer, as_json)


def cancel(context: typer.Context, job: _Job, as_json: Json = False) -> None:
    """Stop a job; of no effect on one that has ended."""
    with context.obj.open() as client:
        status = client.job(job).cancel()
    emit({"job": job, **asdict(status)}, as_json, lambda console: console.print(_line(status)))


def _record(job: Job) -> dict[str, Any]:
    return {"job": job.name, "model": job.model, "version": job.version, "created": job.created}


def _render_jobs(console: Console, found: list[Job]) -> None:
    drawn = table(("job", "model", "version", "submitted"), text_columns=4)
    for job in found:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.created))
        drawn.add_row(job.name, job.model, job.version, when)
    console.print(drawn)


def _line(status: JobStatus) -> str:
    parts = [status.state.value]
    if status.layer:
        parts.append(f"layer {status.layer} of {status.layers} {status.layer_name}".rstrip())
    if status.operations_planned:
        parts.append(f"{status.operations_done:,} of {status.operations_planned:,} operations")
    if status.seconds_left is not None:
        parts.append(f"{status.seconds_left:,.1f} s left")
    if status.reason:
        parts.append(f"{status.reason}: {status.message}")
    return ", ".join(parts)
