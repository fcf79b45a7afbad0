"""`secateur bench mnist`: dense MNIST networks on our back ends, in TenSEAL's own interface and in Orion, in turn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .bench_mnist_text import render
from .contenders import BACKENDS, NAMES, Contenders, cores, why_unavailable
from .mnist_networks import NETWORKS, dense_model
from .options import Cache, Data, Images, Json
from .orion_environment import default_environment
from .output import emit, say

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from he_runtime import Plan
    from model_prep.data import Dataset

    Floats = npt.NDArray[np.float64]
    Rounds = dict[str, list[tuple[float, Floats]]]

__all__ = ["mnist"]


@dataclass(frozen=True)
class _Wish:
    """What was asked for."""

    backends: tuple[str, ...]
    images: int
    orion: Path | None  # its environment; None: leave it out
    cache: Path | None


def mnist(
    images: Images = 20,
    networks: Annotated[str, typer.Option(help="Which networks, with commas between.")] = ",".join(NETWORKS),
    backends: Annotated[
        str, typer.Option(help="Our back ends, with commas between; those that are built otherwise.")
    ] = "",
    orion: Annotated[bool, typer.Option(help="Compare with Orion, installed into an environment of its own.")] = True,
    orion_venv: Annotated[
        Path | None, typer.Option(help="Orion's environment; .cache/orion-venv in the checkout otherwise.")
    ] = None,
    data: Data = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Dense MNIST networks: this project against TenSEAL and Orion.

    All have the same weights and images and run in turn, in one process each; timed is from encrypted input to
    encrypted output, weights encoded before, and medians count. What cannot run here is left out with the reason.
    """
    from he_runtime.cost.calibrate import machine_name
    from model_prep.data import load

    names = _chosen(networks, tuple(NETWORKS), "network")
    asked = _chosen(backends, BACKENDS, "back end") if backends else BACKENDS
    _refuse_missing(asked if backends else ())
    environment = (orion_venv or default_environment()) if orion else None
    wish = _Wish(asked, images, environment, cache)
    dataset = load("mnist", data)
    record = {
        "machine": machine_name(),
        "cores": cores(),
        "data": dataset.name,
        "images": images,
        "networks": [_measure(name, dataset, wish) for name in names],
    }
    emit(record, as_json, lambda console: render(console, record))


def _chosen(listed: str, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    from he_runtime.errors import InputError

    names = tuple(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        got = ", ".join(unknown) or "none"
        raise InputError(f"cannot measure {what} {got}: need some of {', '.join(known)}")
    return names


def _refuse_missing(backends: tuple[str, ...]) -> None:
    from he_runtime.errors import BackendUnavailable

    for backend in backends:
        why = why_unavailable(backend)
        if why is not None:
            raise BackendUnavailable(why)


def _measure(name: str, dataset: Dataset, wish: _Wish) -> dict[str, Any]:
    """All figures of one network; what could not be measured is None, and `reasons` says why."""
    import numpy as np

    from he_runtime.reference import forward, normalize

    say(f"{name} ...")
    model = dense_model(name, dataset, wish.cache)
    x = normalize(model.input, dataset.x_test[: wish.images])
    clear = forward(model, x)
    with Contenders(model, x, float(np.abs(clear).max())) as group:
        _enter(group, name, wish)
        figures = _figures(_interleaved(group), clear)
        parameters = {backend: _parameters(local.executor.plan) for backend, local in group.ours.items()}
        facts = group.facts
    with_memory = _memory(group)
    ours = parameters.get("native") or parameters.get("tenseal") or {}
    return {
        "network": name,
        "title": NETWORKS[name].title,
        **figures,
        **with_memory,
        "images": len(x),
        "N": ours.get("N"),
        "log2_qp": ours.get("log2_qp"),
        "parameters": parameters | facts,
        "threads": dict.fromkeys(NAMES, cores()) | {"native_1thread": 1, "tenseal_backend": 1},
        "accuracy": model.metadata.get("accuracy", {}).get("final"),
        "reasons": group.absent,
    }


def _enter(group: Contenders, name: str, wish: _Wish) -> None:
    """Let everybody in who can run; Orion last, since it takes what memory there is."""
    for backend in BACKENDS:
        names = [n for n in NAMES if n.startswith(backend) and n != "tenseal_api"]
        why = why_unavailable(backend) if backend in wish.backends else "left out by --backends"
        if why is None:
            group.add_backend(backend)
        else:
            group.absent |= dict.fromkeys(names, why)
    group.add_tenseal_api(name)
    if wish.orion is None:
        group.absent["orion"] = "left out by --no-orion"
    else:
        group.add_orion(name, wish.orion)


def _interleaved(group: Contenders) -> Rounds:
    """Everybody on every image, in an order that moves on by one each time, after one image that does not count."""
    from he_runtime.errors import SecateurError

    found: Rounds = {name: [] for name in group.runs}
    for k in range(-1, len(group.x)):
        order = list(group.runs)
        shift = k % max(1, len(order))
        for name in order[shift:] + order[:shift]:
            try:
                result = group.runs[name](max(k, 0))
            except SecateurError as error:
                group.drop(name, error.message)
                del found[name]
                continue
            if k >= 0:
                found[name].append(result)
        last = ", ".join(f"{name} {runs[-1][0]:.3f} s" for name, runs in found.items() if runs)
        say(f"image {k + 1} of {len(group.x)}: {last}" if k >= 0 else "warm")
    return found


def _figures(rounds: Rounds, clear: Floats) -> dict[str, Any]:
    """Median seconds, ratios to native, errors and matches of everybody; those of native under the plain keys."""
    import statistics

    import numpy as np

    seconds: dict[str, float | None] = dict.fromkeys(NAMES)
    errors: dict[str, float] = {}
    matches: dict[str, int] = {}
    for name, runs in rounds.items():
        logits = np.stack([answer for _, answer in runs]).reshape(clear.shape)
        seconds[name] = statistics.median(s for s, _ in runs)
        errors[name] = float(np.abs(logits - clear).max() / np.abs(clear).max())
        matches[name] = int((logits.argmax(axis=1) == clear.argmax(axis=1)).sum())
    return {
        **{f"{name}_s": s for name, s in seconds.items()},
        "ratios": _ratios(seconds),
        "relative_error": errors.get("native"),
        "argmax_matches": matches.get("native"),
        "relative_errors": errors,
        "argmax_matches_of": matches,
    }


def _ratios(seconds: dict[str, float | None]) -> dict[str, float | None]:
    """How many times as long as native (all threads, and one) the others take."""

    def over(other: str, base: str) -> float | None:
        a, b = seconds[other], seconds[base]
        return None if a is None or b is None else a / b

    return {
        f"{other}_over_{base}": over(other, base)
        for other in ("tenseal_backend", "tenseal_api", "orion")
        for base in ("native", "native_1thread")
    } | {"orion_over_tenseal_backend": over("orion", "tenseal_backend")}


def _parameters(planned: Plan) -> dict[str, Any]:
    params = planned.params
    bits = {"primes": params.primes, "special": params.special}
    return {
        "N": params.degree,
        "log2_qp": params.log2_qp,
        **{f"{name}_bits": [q.bit_length() for q in values] for name, values in bits.items()},
        "plan": planned.digest,
    }


def _memory(group: Contenders) -> dict[str, Any]:
    """Peak bytes of a process that only evaluates this network on native (else on the first of ours), and predicted.

    Both are beyond what interpreter and libraries take; `process_peak_bytes` has those too.
    """
    from he_runtime.cost.memory import memory
    from he_runtime.errors import SecateurError

    from .peak_memory import measure_peak

    nothing = dict.fromkeys(("peak_bytes", "predicted_peak_bytes", "process_peak_bytes", "peak_backend"))
    if not group.ours:
        return nothing
    backend, local = next(iter(group.ours.items()))
    planned = local.executor.plan
    predicted = {"predicted_peak_bytes": memory(planned, backend).total, "peak_backend": backend}
    try:
        peak, before = measure_peak(planned, local, backend)
    except SecateurError as error:
        group.absent["peak_bytes"] = error.message
        return nothing | predicted
    return predicted | {"peak_bytes": peak - before, "process_peak_bytes": peak}
