"""`secateur bench latency`: predicted against measured, for every reference network that fits this machine."""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .calibrate import measured_table
from .options import Backend, Json
from .output import emit, say, table
from .probe import fourier_probe

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["latency"]


def latency(
    network: Annotated[list[str] | None, typer.Option(help="Only these reference networks; repeatable.")] = None,
    backend: Backend = None,
    runs: Annotated[int, typer.Option(help="Runs per network, of which the median counts.", min=7)] = 7,
    seconds: Annotated[float, typer.Option(help="Calibration time per network, in seconds.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Predicted latency against measured, for the reference networks.

    Their weights are random: only the shapes matter here. A network that needs more memory than is free is left out.
    """
    from he_runtime.backends import default_backend
    from he_runtime.cost.calibrate import machine_name, threads_of
    from he_runtime.errors import DoesNotFit, InputError
    from model_prep.networks import NETWORKS

    names = network if network else list(NETWORKS)
    unknown = sorted(set(names) - set(NETWORKS))
    if unknown:
        raise InputError(f"cannot measure {', '.join(unknown)}: need some of {', '.join(NETWORKS)}")
    backend = backend or default_backend()
    rows: list[dict[str, Any]] = []
    for name in names:
        say(f"{name} ...")
        try:
            rows.append({"network": name, "fits": True, **_measure(name, backend, runs, seconds)})
        except DoesNotFit as error:
            rows.append({"network": name, "fits": False, "why": error.message})
    record = {"machine": machine_name(), "backend": backend, "threads": threads_of(backend), "networks": rows}
    emit(record, as_json, lambda console: _render(console, record))


def _measure(name: str, backend: str, runs: int, seconds: float) -> dict[str, Any]:
    """One network: predicted and measured milliseconds, and whether executed counters equal planned ones.

    `measured_ms` is this thread's processor time, as in calibration, which on a free core is the wall clock; the
    median by the wall clock stands beside it. Raises DoesNotFit when memory would run out.
    """
    import numpy as np

    from he_runtime import compile, price
    from he_runtime.cost import load_default
    from he_runtime.cost.calibrate import clock_of
    from he_runtime.cost.measure import measure_latency
    from he_runtime.gadget import SEAL
    from he_runtime.plan.counts import FUSED
    from model_prep.reference_models import random_reference

    from .local import Local

    planned = compile(random_reference(name), table=load_default(backend), gadget=None if backend in FUSED else SEAL)
    report = price(planned, measured_table(backend, planned.params, seconds, only=planned.counts_on(backend)))
    _refuse_too_large(name, report.peak_bytes)
    local = Local(planned, backend)
    encrypted = local.encrypt(np.random.default_rng(0).normal(size=planned.inputs[0].shape) * 0.5)
    wall: list[float] = []

    def run() -> None:
        start = time.perf_counter()
        local.evaluate(encrypted)
        wall.append(time.perf_counter() - start)

    measured = measure_latency(run, fourier_probe(), runs, clock=clock_of(backend))
    return {
        "predicted_ms": report.latency_ms,
        "measured_ms": measured.median_ms,
        "wall_ms": statistics.median(wall) * 1e3,
        "ratio": report.latency_ms / measured.median_ms,
        "runs": measured.rounds,
        "disturbed_runs": measured.disturbed,
        "counters_equal": local.executor.counters == planned.counts_on(backend),
        "counts": dict(report.counts),
        "N": planned.params.degree,
        "log2_qp": planned.params.log2_qp,
    }


def _refuse_too_large(name: str, need: int) -> None:
    from he_runtime.errors import DoesNotFit

    free = _free_bytes()
    if need > 0.8 * free:
        raise DoesNotFit(
            f"cannot measure {name!r}: got {free / 1e9:.1f} GB of free memory, need {need / 1e9:.1f} GB; "
            "try a machine with more"
        )


def _free_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _render(console: Console, record: dict[str, Any]) -> None:
    threads = "one thread" if record["threads"] == 1 else f"{record['threads']} threads"
    title = f"{record['machine']}, {record['backend']}, {threads}"
    drawn = table(("network", "N", "predicted", "measured", "ratio", "counters"), title)
    for row in record["networks"]:
        if not row["fits"]:
            drawn.add_row(row["network"], "", "does not fit")
            continue
        cells = (f"{row['predicted_ms']:.0f} ms", f"{row['measured_ms']:.0f} ms", f"{row['ratio']:.2f}")
        drawn.add_row(row["network"], str(row["N"]), *cells, "equal" if row["counters_equal"] else "DIFFER")
    console.print(drawn)
