"""`secateur predict`: encrypt an input, ask a server, print the answer. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .client_connection import (
    Certificate,
    ClientCertificate,
    ClientKey,
    Connection,
    Home,
    Model,
    Server,
    Strict,
    TokenFile,
    Version,
)
from .options import Json
from .output import emit, facts_table, progress_bytes, progress_share, warnings_as_lines

if TYPE_CHECKING:
    import numpy.typing as npt
    from rich.console import Console

    from client import Prediction

__all__ = ["InputFile", "predict", "read_input", "run_predict", "show_answer"]

InputFile = Annotated[Path, typer.Argument(metavar="INPUT", help="One sample or a batch: .npy, or .json lists.")]


def predict(
    model: Model,
    input_file: InputFile,
    server: Server = "localhost:50051",
    certificate: Certificate = None,
    client_certificate: ClientCertificate = None,
    client_key: ClientKey = None,
    token_file: TokenFile = None,
    version: Version = None,
    home: Home = None,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Encrypt an input, have a server evaluate a model on it, and decrypt the answer."""
    where = Connection(server, certificate, client_certificate, client_key, token_file, home)
    run_predict(where, model, input_file, version, strict, as_json)


def run_predict(
    where: Connection, model: str, input_file: Path, version: str | None, strict: bool, as_json: bool
) -> None:
    """What `secateur predict` and `secateur client predict` do."""
    values = read_input(input_file)
    with warnings_as_lines(), where.open() as client, _bars() as (upload, items):
        answer = client.predict(model, values, version=version, strict=strict, progress=upload, items=items)
    show_answer(model, answer, as_json)


@contextmanager
def _bars() -> Iterator[tuple[Callable[[int, int], None], Callable[[int, int], None]]]:
    """Callbacks of the key upload's bar and, for a batch, of the answers' bar that takes its place."""
    with ExitStack() as shown:
        upload = shown.enter_context(progress_bytes("uploading keys"))
        share: Callable[[float], None] | None = None

        def items(done: int, total: int) -> None:
            nonlocal share
            if total == 1:
                return
            if share is None:
                shown.close()
                share = shown.enter_context(progress_share("computing"))
            share(done / total)

        yield upload, items


def show_answer(model: str, answer: Prediction, as_json: bool) -> None:
    emit(_record(model, answer), as_json, lambda console: _render(console, answer))


def read_input(path: Path) -> npt.NDArray[Any]:
    """The array in a .npy or .json file; InputError for anything else. Nothing in it is executed."""
    import numpy as np

    from he_runtime.errors import InputError

    if path.suffix not in (".npy", ".json"):
        raise InputError(f"cannot read {path}: got {path.suffix or 'no suffix'}, need .npy or .json")
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            values = np.asarray(json.loads(path.read_text()), dtype=np.float64)
        return np.asarray(values, dtype=np.float64)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; need a .npy or .json file") from error
    except (ValueError, TypeError, EOFError) as error:
        raise InputError(f"cannot read {path}: not a rectangular array of numbers; try numpy.save") from error


def _record(model: str, answer: Prediction) -> dict[str, Any]:
    return {
        "model": model,
        "answer": answer.index,
        "label": answer.label,
        "logits": answer.logits,
        "probabilities": answer.probabilities,
        "error_bound": answer.error_bound,
        "up_bytes": answer.up_bytes,
        "down_bytes": answer.down_bytes,
        "key_bytes": answer.key_bytes,
        "uploaded_bytes": answer.uploaded_bytes,
        "counts": answer.counts,
        "timings": vars(answer.timings),
    }


def _render(console: Console, answer: Prediction) -> None:
    if answer.label is not None:
        console.print(answer.label if isinstance(answer.label, str) else "\n".join(answer.label))
    elif answer.index is not None:
        console.print(str(answer.index))
    else:
        console.print(str(answer.logits))
    timings = answer.timings
    facts = [
        ("server", f"{timings.server_evaluate_seconds * 1e3:.0f} ms evaluating"),
        ("round trip", f"{timings.round_trip_seconds * 1e3:.0f} ms"),
        ("bytes", f"{answer.up_bytes:,} up, {answer.down_bytes:,} down, {answer.uploaded_bytes:,} of keys sent now"),
        ("error bound", f"{answer.error_bound:.3g} per output"),
    ]
    console.print(facts_table("", facts))
