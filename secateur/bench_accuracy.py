"""`secateur bench accuracy`: encrypted answers of the service against clear ones, and errors against predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .compress import stage_facts
from .options import Backend, Cache, Data, Images, Json, Recipe
from .output import emit, facts_table, say

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from rich.console import Console

    from he_runtime import Plan

__all__ = ["accuracy"]


def accuracy(
    images: Images = 100,
    recipe: Recipe = "digits-cnn",
    backend: Backend = None,
    data: Data = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Encrypted answers of the service against clear ones."""
    import numpy as np

    from he_runtime import compile, run_clear
    from he_runtime.backends import default_backend
    from he_runtime.cost import load_default
    from he_runtime.cost.calibrate import machine_name
    from he_runtime.reference import normalize

    from .service import served
    from .trained import data_of, trained

    backend = backend or default_backend()
    model = trained(recipe, cache, data)
    dataset = data_of(recipe, data)
    raw, labels = dataset.x_test[:images].astype(np.float64), dataset.y_test[:images]
    planned = compile(model, table=load_default(backend))
    clear = run_clear(planned, normalize(model.input, raw)).reshape(len(raw), -1)
    with served(model, planned, backend) as client:
        say(f"asking with {len(raw)} encrypted images ...")
        encrypted = client.predict(model.name, raw).logits.reshape(clear.shape)
    record = _comparison(planned, encrypted, clear, labels) | {
        "logit_rms_change": dict(model.metadata.get("logit_rms_change", {})),
        "stage_accuracy": dict(model.metadata.get("accuracy", {})),
        "backend": backend,
        "data": dataset.name,
        "machine": machine_name(),
        "threads": 1,
    }
    emit(record, as_json, lambda console: _render(console, record))


def _comparison(
    planned: Plan,
    encrypted: npt.NDArray[np.float64],
    clear: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
) -> dict[str, Any]:
    """Logits (images, classes), decrypted and clear, against each other and the plan's prediction of their distance."""
    import numpy as np

    errors = encrypted - clear
    ordered = np.sort(clear, axis=1)
    margin = float(np.median(ordered[:, -1] - ordered[:, -2]))
    rms, largest = float(np.sqrt(np.mean(errors**2))), float(np.abs(errors).max())
    return {
        "images": len(clear),
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
        "N": planned.params.degree,
        "log2_qp": planned.params.log2_qp,
    }


def _render(console: Console, record: dict[str, Any]) -> None:
    metadata = {"accuracy": record["stage_accuracy"], "logit_rms_change": record["logit_rms_change"]}
    facts = [
        ("same argmax", f"{record['argmax_matches']} of {record['images']} images ({record['data']})"),
        ("accuracy", f"{record['encrypted_accuracy']:.1%} encrypted, {record['clear_accuracy']:.1%} clear"),
        ("RMS error", f"{record['rms_error']:.3g}, {record['rms_over_sigma']:.2f} of the predicted sigma"),
        ("largest error", f"{record['max_error']:.3g}, stated bound {record['error_bound']:.3g}"),
        ("median margin", f"{record['median_margin']:.3g}; the bound is {record['bound_over_margin']:.1%} of it"),
        *stage_facts(metadata),
        ("parameters", f"N={record['N']}, log2(QP)={record['log2_qp']:.1f}"),
        ("machine", f"{record['machine']}, {record['backend']}, one thread"),
    ]
    console.print(facts_table("encrypted against clear (float64, same polynomials)", facts))
