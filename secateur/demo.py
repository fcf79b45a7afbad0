"""`secateur demo`: the whole way once. Train, compress, plan, calibrate, serve over TLS, classify one encrypted digit."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .calibrate import measured_table
from .kernel_threads import one_thread
from .options import Cache, Json, Recipe
from .output import counts_table, emit, facts_table, say

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from rich.console import Console

    from client import Client, Prediction
    from he_runtime import Plan

__all__ = ["demo"]

RECIPE = "digits-cnn"
CALIBRATION_SECONDS = 8.0
RUNS = 9
_REPEATS = 2 * RUNS  # rounds that may be repeated because the machine was disturbed
_SHADES = " .:-=+*#%@"


@dataclass(frozen=True)
class _Measured:
    """The answer of the last run, and medians in milliseconds over `runs` rounds; `disturbed` ones had a moved probe."""

    answer: Prediction
    evaluate_ms: float
    round_trip_ms: float
    runs: int
    disturbed: int


def demo(
    cache: Cache = None,
    image: Annotated[int, typer.Option(help="Which test image to classify.", min=0)] = 0,
    recipe: Recipe = RECIPE,
    as_json: Json = False,
) -> None:
    """The whole way once: train, compress, serve, classify an encrypted digit."""
    import numpy as np

    from he_runtime import compile, price, run_clear
    from he_runtime.backends import default_backend
    from he_runtime.plan.counts import leaf_totals
    from he_runtime.reference import normalize

    from .artifacts import dense_counts
    from .service import served
    from .trained import data_of, trained

    data = data_of(recipe)
    _check_index(image, len(data.x_test))
    model = trained(recipe, cache)
    sample = data.x_test[image].astype(np.float64)
    say("planning ...")
    planned, dense = compile(model), dense_counts(model)
    backend = default_backend()
    only = planned.counts_on(backend)
    with one_thread(backend):  # as the worker
        table = measured_table(backend, planned.params, CALIBRATION_SECONDS, only=only)
    with served(model, planned) as client:
        say("asking with an encrypted image ...")
        measured = _measure(client, model.name, sample)
    clear = run_clear(planned, normalize(model.input, sample[None]))[0]
    record = _record(planned, measured, clear) | {
        "label": int(data.y_test[image]),
        "predicted_ms": price(planned, table).latency_ms,
        "dense_counts": dense,
        "planned_counts": leaf_totals(planned.counts),
        "data": data.name,
        "accuracy": model.metadata.get("accuracy", {}).get("final"),
        "machine": table.machine,
        "threads": table.threads,
        "backend": backend,
    }
    emit(record, as_json, lambda console: _render(console, record, sample))


def _check_index(image: int, count: int) -> None:
    from he_runtime.errors import InputError

    if image >= count:
        raise InputError(f"cannot use test image {image}: need one of 0 to {count - 1}")


def _measure(client: Client, model: str, sample: npt.NDArray[np.float64]) -> _Measured:
    """Medians of RUNS predictions, each between two runs of a fixed probe; a round whose probe moved is repeated."""
    from he_runtime.cost.measure import ProbeGate

    from .probe import fourier_probe

    client.predict(model, sample)  # the first one pays for loading the keys
    gate = ProbeGate(fourier_probe())
    answers: list[Prediction] = []
    repeats = disturbed = 0
    while len(answers) < RUNS:
        before = gate.check()
        answer = client.predict(model, sample)
        steady = gate.check() and before
        if not steady and repeats < _REPEATS:
            repeats += 1
            continue
        disturbed += not steady
        answers.append(answer)
    evaluate = statistics.median(a.timings.server_evaluate_seconds for a in answers)
    round_trip = statistics.median(a.timings.round_trip_seconds for a in answers)
    return _Measured(answers[-1], evaluate * 1e3, round_trip * 1e3, len(answers), disturbed)


def _record(planned: Plan, measured: _Measured, clear: npt.NDArray[np.float64]) -> dict[str, Any]:
    import numpy as np

    answer = measured.answer
    return {
        "answer": int(np.argmax(answer.logits)),
        "clear_answer": int(np.argmax(clear)),
        "measured_ms": measured.evaluate_ms,
        "round_trip_ms": measured.round_trip_ms,
        "runs": measured.runs,
        "disturbed_runs": measured.disturbed,
        "up_bytes": answer.up_bytes,
        "down_bytes": answer.down_bytes,
        "key_bytes": answer.key_bytes,
        "counts": answer.counts,
        "max_error": float(np.abs(answer.logits - clear).max()),
        "error_bound": planned.error_bound,
        "N": planned.params.degree,
        "log2_qp": planned.params.log2_qp,
    }


def _render(console: Console, record: dict[str, Any], sample: npt.NDArray[np.float64]) -> None:
    console.print(_draw(sample))
    console.print()
    disturbed = f", {record['disturbed_runs']} disturbed" if record["disturbed_runs"] else ""
    facts = [
        ("encrypted answer", str(record["answer"])),
        ("clear answer", str(record["clear_answer"])),
        ("label", str(record["label"])),
        ("predicted", f"{record['predicted_ms']:.0f} ms (calibrated on this machine)"),
        ("measured", f"{record['measured_ms']:.0f} ms (median of {record['runs']} runs{disturbed})"),
        ("round trip", f"{record['round_trip_ms']:.0f} ms"),
        ("bytes", f"{record['up_bytes']:,} up, {record['down_bytes']:,} down, {record['key_bytes']:,} of keys once"),
        ("error", f"{record['max_error']:.2g}, stated bound {record['error_bound']:.2g}"),
        ("security", f"128 bits: N={record['N']}, log2(QP)={record['log2_qp']:.1f}"),
        ("machine", f"{record['machine']}, one thread"),
    ]
    console.print(facts_table("", facts))
    console.print()
    console.print(counts_table({"dense": record["dense_counts"], "compressed": record["planned_counts"]}))


def _draw(sample: npt.NDArray[np.float64]) -> str:
    """A grey image (1, H, W) as text, two characters a pixel."""
    import numpy as np

    low, high = sample.min(), sample.max()
    shades = np.rint((sample[0] - low) / max(high - low, 1e-9) * (len(_SHADES) - 1)).astype(int)
    return "\n".join("".join(2 * _SHADES[shade] for shade in row) for row in shades)
