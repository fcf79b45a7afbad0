"""`secateur demo`: the whole way once. Train, compress, plan, calibrate, serve over TLS, classify one encrypted digit."""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import Json, counts_table, emit, facts_table, progress_bytes, say

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from rich.console import Console

    from client import Client, Prediction
    from he_runtime import CompressedModel, Plan

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
    cache: Annotated[Path | None, typer.Option(help="Where the trained network is kept between runs.")] = None,
    image: Annotated[int, typer.Option(help="Which test image to classify.", min=0)] = 0,
    recipe: Annotated[str, typer.Option(help="The recipe that makes the network.")] = RECIPE,
    as_json: Json = False,
) -> None:
    """Train, compress, serve with TLS on loopback, and classify one encrypted digit."""
    import numpy as np

    import model_prep.data
    from he_runtime import compile
    from he_runtime.cost import price
    from he_runtime.cost.calibrate import calibrate
    from he_runtime.errors import InputError
    from he_runtime.execute import run_clear
    from he_runtime.reference import normalize

    from .artifacts import cache_directory, dense_counts

    model = _trained(recipe, cache_directory(cache), as_json)
    data = model_prep.data.load(model.metadata["recipe"]["dataset"])
    if image >= len(data.x_test):
        raise InputError(f"cannot use test image {image}: need one of 0 to {len(data.x_test) - 1}")
    sample = data.x_test[image].astype(np.float64)
    say("planning ...")
    planned, dense = compile(model), dense_counts(model)
    say(f"calibrating for {CALIBRATION_SECONDS:.0f} s ...")
    table = calibrate("tenseal", planned.params, seconds=CALIBRATION_SECONDS, only=planned.counts)
    report = price(planned, table)
    measured = _serve_and_measure(model, planned, sample)
    clear = run_clear(planned, normalize(model.input, sample[None]))[0]
    record = _record(planned, measured, sample, clear) | {
        "label": int(data.y_test[image]),
        "predicted_ms": report.latency_ms,
        "dense_counts": dense,
        "data": data.name,
        "accuracy": model.metadata.get("accuracy", {}).get("final"),
        "machine": table.machine,
    }
    emit(record, as_json, lambda console: _render(console, record, sample))


def _trained(recipe: str, cache: Path, quiet: bool) -> CompressedModel:
    """The network of the recipe: from the cache when this recipe and this code made it before, else trained now."""
    import model_prep
    from he_runtime import CompressedModel
    from he_runtime.errors import ModelError

    from .artifacts import find_recipe

    hasher = hashlib.sha256()
    for file in (find_recipe(recipe), *sorted(Path(model_prep.__path__[0]).glob("*.py"))):
        hasher.update(file.read_bytes())
    directory = cache / f"{Path(recipe).stem}-{hasher.hexdigest()[:16]}"
    if directory.exists():
        try:
            model = CompressedModel.load(directory)
            say(f"reusing the network in {directory}")
            return model
        except ModelError as error:
            say(f"training again: {error.message}")
    say("training and compressing the network (kept for the next time) ...")
    started = time.monotonic()
    model = _train(recipe, quiet)
    model.save(directory)
    say(f"trained in {time.monotonic() - started:.0f} s")
    return model


def _train(recipe: str, quiet: bool) -> CompressedModel:
    import torch

    from .compress import run_recipe

    torch.set_num_threads(1)  # batches of 8x8 images: a second thread only waits for the first
    return run_recipe(recipe, quiet=quiet)


def _serve_and_measure(model: CompressedModel, planned: Plan, sample: npt.NDArray[np.float64]) -> _Measured:
    """Serve the model from a process of its own, over TLS, and ask it as a stranger would."""
    import server
    from client import Client

    from .artifacts import save_version

    with tempfile.TemporaryDirectory(prefix="secateur-demo-") as name:
        root = Path(name)
        save_version(model, planned, root / "models", "1")
        certificate, private_key = server.make_self_signed(root / "tls")
        config = root / "server.toml"
        config.write_text(_CONFIG.format(certificate=certificate.name, private_key=private_key.name))
        say("serving with TLS on loopback ...")
        with (
            server.start_subprocess(config) as running,
            Client.connect(running.address, certificate=certificate, home=root / "client") as client,
        ):
            with progress_bytes("uploading keys") as progress:
                client.prepare(model.name, progress=progress)
            say("asking with an encrypted image ...")
            return _measure(client, model.name, sample)


_CONFIG = """
address = "127.0.0.1:0"
models = "models"
state = "state"
drain_seconds = 2.0
log_level = "warning"

[tls]
enabled = true
certificate = "tls/{certificate}"
private_key = "tls/{private_key}"
"""


def _measure(client: Client, model: str, sample: npt.NDArray[np.float64]) -> _Measured:
    """Medians of RUNS predictions, each between two runs of a fixed probe; a round whose probe moved is repeated."""
    from he_runtime.cost.measure import ProbeGate

    client.predict(model, sample)  # the first one pays for loading the keys
    gate = ProbeGate(_fourier_probe())
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


def _fourier_probe() -> Callable[[], None]:
    """A fixed few milliseconds of arithmetic, to notice when the machine is disturbed."""
    import numpy as np

    work = np.random.default_rng(0).normal(size=1 << 16)

    def probe() -> None:
        for _ in range(4):
            np.fft.fft(work)

    return probe


def _record(
    planned: Plan, measured: _Measured, sample: npt.NDArray[np.float64], clear: npt.NDArray[np.float64]
) -> dict[str, Any]:
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
        "backend": "tenseal",
    }


def _render(console: Console, record: dict[str, Any], sample: npt.NDArray[np.float64]) -> None:
    console.print(_draw(sample), markup=False)
    disturbed = f", {record['disturbed_runs']} disturbed" if record["disturbed_runs"] else ""
    facts = [
        ("encrypted answer", str(record["answer"])),
        ("clear answer", str(record["clear_answer"])),
        ("label", str(record["label"])),
        ("predicted", f"{record['predicted_ms']:.0f} ms"),
        ("measured", f"{record['measured_ms']:.0f} ms (median of {record['runs']} runs{disturbed})"),
        ("round trip", f"{record['round_trip_ms']:.0f} ms"),
        ("bytes", f"{record['up_bytes']:,} up, {record['down_bytes']:,} down, {record['key_bytes']:,} of keys once"),
        ("error", f"{record['max_error']:.2g}, stated bound {record['error_bound']:.2g}"),
        ("security", f"128 bits: N={record['N']}, log2(QP)={record['log2_qp']:.1f}"),
        ("machine", record["machine"]),
    ]
    console.print(facts_table("", facts))
    console.print()
    columns = {"dense": record["dense_counts"], "compressed": record["counts"]}
    console.print(counts_table("operations", columns))


def _draw(sample: npt.NDArray[np.float64]) -> str:
    """A grey image (1, H, W) as text, two characters a pixel."""
    import numpy as np

    low, high = sample.min(), sample.max()
    shades = np.rint((sample[0] - low) / max(high - low, 1e-9) * (len(_SHADES) - 1)).astype(int)
    return "\n".join("".join(2 * _SHADES[shade] for shade in row) for row in shades)
