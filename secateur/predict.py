"""`secateur predict`: encrypt an input, ask a server, print the answer. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json
from .output import emit, facts_table, progress_bytes, warnings_as_lines

if TYPE_CHECKING:
    import numpy.typing as npt
    from rich.console import Console

    from client import Prediction

__all__ = ["predict", "read_input"]


def predict(
    model: Annotated[str, typer.Argument(help="The name of the model at the server.")],
    input_file: Annotated[Path, typer.Argument(metavar="INPUT", help="One sample or a batch: .npy, or .json lists.")],
    server: Annotated[str, typer.Option(help="host:port of the server.")] = "localhost:50051",
    certificate: Annotated[
        str | None, typer.Option(help="PEM file to trust, or sha256:... of the server's certificate.")
    ] = None,
    client_certificate: Annotated[
        Path | None, typer.Option(help="Your own PEM certificate, for a server that asks for one.")
    ] = None,
    client_key: Annotated[Path | None, typer.Option(help="PEM private key of your own certificate.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file that holds your bearer token; never the token itself.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="Version of the model; the latest otherwise.")] = None,
    home: Annotated[Path | None, typer.Option(help="Where secret keys lie; your data directory otherwise.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse values outside the calibrated range.")] = False,
    as_json: Json = False,
) -> None:
    """Encrypt an input, have a server evaluate a model on it, and decrypt the answer."""
    from client import Client

    values = read_input(input_file)
    if (client_certificate is None) != (client_key is None):
        raise typer.BadParameter("--client-certificate and --client-key go together")
    pair = (client_certificate, client_key) if client_certificate is not None and client_key is not None else None
    with (
        warnings_as_lines(),
        Client.connect(server, certificate=certificate, client_certificate=pair, token=token_file, home=home) as client,
        progress_bytes("uploading keys") as progress,
    ):
        answer = client.predict(model, values, version=version, strict=strict, progress=progress)
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
