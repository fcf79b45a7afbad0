"""`secateur bench accuracy`: encrypted answers of the service against clear ones, and errors against predictions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import Json, emit, facts_table, say

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["accuracy"]


def accuracy(
    images: Annotated[int, typer.Option(help="How many test images, from the first on.", min=1)] = 100,
    recipe: Annotated[str, typer.Option(help="The recipe that makes the network.")] = "digits-cnn",
    backend: Annotated[str, typer.Option(help="Back end of the server's worker.")] = "tenseal",
    data: Annotated[Path | None, typer.Option(help="Where data sets lie; SECATEUR_DATA otherwise.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where the trained network is kept between runs.")] = None,
    as_json: Json = False,
) -> None:
    """Send test images through the service, and compare: argmax, RMS error over sigma, largest error over the bound."""
    import numpy as np

    from he_runtime import compile, run_clear
    from he_runtime.reference import normalize

    from .service import served
    from .trained import data_of, trained

    model = trained(recipe, cache, quiet=as_json, data=data)
    dataset = data_of(model, data)
    raw, labels = dataset.x_test[:images].astype(np.float64), dataset.y_test[:images]
    planned = compile(model)
    clear = run_clear(planned, normalize(model.input, raw)).reshape(len(raw), -1)
    with served(model, planned, backend) as client:
        say(f"asking with {len(raw)} encrypted images ...")
        encrypted = client.predict(model.name, raw).logits.reshape(clear.shape)
    errors = encrypted - clear
    ordered = np.sort(clear, axis=1)
    margin = float(np.median(ordered[:, -1] - ordered[:, -2]))
    rms, largest = float(np.sqrt(np.mean(errors**2))), float(np.abs(errors).max())
    record = {
        "images": len(raw),
        "argmax_matches": int((encrypted.argmax(axis=1) == clear.argmax(axis=1)).sum()),
        "encrypted_accuracy": float((encrypted.argmax(axis=1) == labels).mean()),
        "clear_accuracy": float((clear.argmax(axis=1) == labels).mean()),
        "rms_error": rms,
        "sigma": planned.sigma,
        "rms_over_sigma": rms / planned.sigma,
        "max_error": largest,
        "error_bound": planned.error_bound,
        "within_bound": largest <= planned.error_bound,
        "median_margin": margin,
        "bound_over_margin": planned.error_bound / margin,
        "logit_rms_change": dict(model.metadata.get("logit_rms_change", {})),
        "stage_accuracy": dict(model.metadata.get("accuracy", {})),
        "N": planned.params.degree,
        "log2_qp": planned.params.log2_qp,
        "backend": backend,
        "data": dataset.name,
    }
    emit(record, as_json, lambda console: _render(console, record))


def _render(console: Console, record: dict[str, Any]) -> None:
    facts = [
        ("same argmax", f"{record['argmax_matches']} of {record['images']} images ({record['data']})"),
        ("accuracy", f"{record['encrypted_accuracy']:.1%} encrypted, {record['clear_accuracy']:.1%} clear"),
        ("RMS error", f"{record['rms_error']:.3g}, {record['rms_over_sigma']:.2f} of the predicted sigma"),
        ("largest error", f"{record['max_error']:.3g}, stated bound {record['error_bound']:.3g}"),
        ("median margin", f"{record['median_margin']:.3g}; the bound is {record['bound_over_margin']:.1%} of it"),
        *((f"{step} moves logits", f"{v:.3g} RMS") for step, v in record["logit_rms_change"].items()),
        *((f"accuracy, {stage}", f"{v:.2%}") for stage, v in record["stage_accuracy"].items()),
    ]
    console.print(facts_table("encrypted against clear (float64, same polynomials)", facts))
