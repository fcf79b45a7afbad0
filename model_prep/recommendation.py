"""From constraints to an ordered recipe: `recommend` asks the planner, and what was measured, before anything is trained.

The survey of Geng et al. (IEEE TNNLS 2025, arXiv 2405.06038) asks for methods of several families in one pipeline, judged
by the hardware's own cost; here that is the planner's price. The rules are the project's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from he_runtime import compile
from he_runtime.backends import default_backend
from he_runtime.cost import CostTable, load_default
from he_runtime.errors import DoesNotFit, ModelError
from he_runtime.model import CompressedModel
from he_runtime.reference import SAMPLES, calibrate

from .constraints import Constraints, Cost, cost_of, unmet
from .graph import Graph, weight_keys
from .grid.budget import rounded_up
from .methods import METHODS
from .networks import NETWORKS
from .packing.packing import packed_classes
from .recipe import Recipe
from .reference_models import random_reference

__all__ = ["Constraints", "Cost", "Recommendation", "cost_of", "recommend", "unmet"]

_PRUNER = "diagrid"  # the method that takes a latency
_ROOM = 0.9  # of the latency allowed: predictions are off by several per cent
_BITS = 8
# Epochs of teacher, approximation, pruning and rounding, and the batch size: those of the shipped recipes.
_EPOCHS = {"digits": (60, 30, 80, 5, 64), "mnist": (8, 6, 12, 2, 128)}


@dataclass(frozen=True)
class Recommendation:
    """A recipe, why each of its steps is there, and the price of the network before pruning (and of nothing else).

    `measured` is the accuracy of that very recipe where it comes from a measurement.
    """

    recipe: Recipe
    reasons: tuple[str, ...]
    before: Cost
    measured: float | None = None


def recommend(
    constraints: Constraints,
    network: str | CompressedModel,
    *,
    backend: str | None = None,
    evidence: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
) -> Recommendation:
    """A recipe for `network` (one of NETWORKS, or a calibrated model of one's own, whose weights do not matter).

    `evidence` are points of benchmarks/methods.py: where some of them meet every constraint, the most accurate one's
    recipe is taken. Without any, steps are chosen by price alone, and accuracy is known after training (`unmet`).

    Raises DoesNotFit, with the nearest feasible value, for a constraint that no recipe of the registry can meet on that
    network: below the price of its emptiest structured form, or above the best accuracy measured.
    """
    table = load_default(backend or default_backend())
    model = _model(network, seed)
    before = cost_of(model, table)
    measured = _from_evidence(constraints, model.name, before, evidence)
    if measured is not None:
        return measured
    model, steps, reasons = _approximation(constraints, model, table)
    pruning, why = _pruning(constraints, model, table)
    steps, reasons = steps + pruning, reasons + why
    steps.append({"method": "integers", "bits": _BITS})
    reasons.append(
        f"integers: {_BITS} bits per weight keep the accuracy of real ones, and the model is a quarter as large"
    )
    if constraints.accuracy is not None:
        reasons.append(
            f"accuracy: at least {constraints.accuracy:.2%} was asked, and nothing measured says what this recipe reaches; "
            "it saves no more than the other constraints ask"
        )
    return Recommendation(_recipe(model.name, steps, seed), tuple(reasons), before)


def _model(network: str | CompressedModel, seed: int) -> CompressedModel:
    if not isinstance(network, str | CompressedModel):
        raise ModelError(f"cannot recommend for a {type(network).__name__}: need a network's name or a CompressedModel")
    model = random_reference(network, seed) if isinstance(network, str) else network
    if SAMPLES not in model.arrays:
        raise ModelError(
            f"cannot recommend for {model.name!r}: it was not calibrated; try he_runtime.reference.calibrate"
        )
    return model


Steps = tuple[list[dict[str, Any]], list[str]]


def _approximation(
    wish: Constraints, model: CompressedModel, table: CostTable
) -> tuple[CompressedModel, list[dict[str, Any]], list[str]]:
    """Quadratics; where they take too many levels or bytes, as few activations go as is enough. And the model of that."""
    found = model
    for name in [None, *(n.name for n in reversed(model.nodes) if n.op in ("quadratic", "polynomial"))]:
        found = found if name is None else _without(found, name)
        cost = cost_of(found, table)
        over = [miss for miss in cost.over(wish) if miss[0] != "max_ms"]
        if not over and name is None:
            return (
                found,
                [{"method": "quadratics"}],
                [f"quadratics: {cost.levels} levels, {cost.upload_bytes:,} bytes up, within what was asked"],
            )
        if not over:
            return (
                found,
                [{"method": "polynomials", "levels": cost.levels}],
                [
                    f"polynomials: activations on {cost.levels} levels in all, the others removed, take "
                    f"{cost.upload_bytes:,} bytes up"
                ],
            )
    raise _refused(over, model.name, "with every activation removed it needs")


def _pruning(wish: Constraints, model: CompressedModel, table: CostTable) -> Steps:
    """Nothing where the dense network is fast enough, else pruning to the latency."""
    cost = cost_of(model, table)
    if wish.max_ms is None or cost.ms <= _ROOM * wish.max_ms:
        return [], []
    floor = _floor(model, table)
    if floor > wish.max_ms:  # the method takes activations out too, all of them where that is what it takes
        floor = min(floor, _floor(_linear(model), table))
    if floor > wish.max_ms:
        raise _refused(
            [("max_ms", wish.max_ms, floor)],
            model.name,
            "with one diagonal left of every layer and no activation it takes",
        )
    target = _ROOM * wish.max_ms if _ROOM * wish.max_ms >= floor else wish.max_ms
    step = {"method": _PRUNER, "target_ms": target, "backend": table.backend}
    lowers = METHODS[_PRUNER].card.lowers
    return [step], [
        f"{_PRUNER}: the dense network takes {cost.ms:.1f} ms where {wish.max_ms:g} ms are allowed; pruned to {target:.1f} ms "
        f"by the planner's price; it lowers {lowers}; the emptiest of this shape would take {floor:.1f} ms"
    ]


def _floor(model: CompressedModel, table: CostTable) -> float:
    return min(cost_of(emptied, table).ms for emptied in _emptiest(model, table))


def _linear(model: CompressedModel) -> CompressedModel:
    """The network without its activations."""
    for node in [n for n in model.nodes if n.op in ("quadratic", "polynomial")]:
        model = _without(model, node.name)
    return model


def _without(model: CompressedModel, name: str) -> CompressedModel:
    return _again(model, Graph.from_model(model).without(name))


def _emptiest(model: CompressedModel, table: CostTable) -> list[CompressedModel]:
    """Networks of this shape that no structured pruning makes cheaper.

    Of every layer the class of diagonals with most weights is left; the second has one weight per row in its first
    layer, which a client may gather.
    """
    graph = Graph.from_model(model)
    classes = packed_classes(graph, compile(model, table=table).params.degree, table)
    keep = {key: classes[key] == np.bincount(classes[key].ravel()).argmax() for key in weight_keys(graph)}
    first = next(iter(keep))
    rows = np.abs(graph.arrays[first]).reshape(len(graph.arrays[first]), -1)
    one = (np.arange(rows.shape[1]) == rows.argmax(axis=1)[:, None]).reshape(keep[first].shape)
    found = []
    for kept in (keep, {**keep, first: one}):
        # What stays is scaled up, so that activations keep their size, and the plan its precision.
        arrays = {k: np.where(m, np.asarray(graph.arrays[k]) * np.sqrt(m.size / m.sum()), 0.0) for k, m in kept.items()}
        found.append(_again(model, replace(graph, arrays={**graph.arrays, **arrays})))
    return found


def _again(model: CompressedModel, graph: Graph) -> CompressedModel:
    """Another graph of the same model, calibrated on the model's own samples."""
    samples = np.asarray(model.arrays[SAMPLES], dtype=np.float64)
    return calibrate(graph.to_model(model.name, model.input, model.output.labels), samples)


def _refused(over: Sequence[tuple[str, float, float]], name: str, why: str) -> DoesNotFit:
    wishes = ", ".join(f"{what} = {asked:.10g}" for what, asked, _ in over)
    needs = ", ".join(f"{what} = {rounded_up(need) if what == 'max_ms' else need:.10g}" for what, _, need in over)
    return DoesNotFit(f"cannot recommend a recipe for {name!r}: got {wishes}, and {why} {needs}; try {needs}")


def _from_evidence(
    wish: Constraints, network: str, before: Cost, evidence: Sequence[Mapping[str, Any]]
) -> Recommendation | None:
    """The most accurate measured point within the constraints; None where nothing was measured within the costs."""
    try:
        within = [p for p in evidence if p["network"] == network and p["made"] and not _over(p, wish)]
        within = [p for p in within if p["accuracy"] >= 0 and p["recipe"]["steps"]]
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"cannot use the evidence: got a point without {error}, need points of benchmarks/methods.py; try its --json"
        ) from error
    if not within:
        return None
    best = max(within, key=lambda p: (p["accuracy"], -_diagonal(p)["predicted_ms"]))
    if wish.accuracy is not None and best["accuracy"] < wish.accuracy:
        raise DoesNotFit(
            f"cannot recommend a recipe for {network!r}: got accuracy = {wish.accuracy:g}, and the best of "
            f"{len(within)} networks measured within the other constraints has {best['accuracy']:g}; try that"
        )
    cost = _diagonal(best)
    reason = (
        f"{best['recipe']['steps'][-1]['method']}: measured, the most accurate of {len(within)} within the constraints: "
        f"{best['accuracy']:.2%}, {cost['predicted_ms']:.1f} ms predicted, {cost['levels']} levels, "
        f"{cost['upload_bytes']:,} bytes up"
    )
    return Recommendation(Recipe.from_dict(_plain(best["recipe"])), (reason,), before, best["accuracy"])


def _diagonal(point: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = point["packings"]["diagonal"]
    return found


def _over(point: Mapping[str, Any], wish: Constraints) -> bool:
    """Whether a single query of a measured point exceeds what was asked."""
    found = _diagonal(point)
    if not found["fits"]:
        return True
    return bool(Cost(found["predicted_ms"], found["levels"], found["upload_bytes"]).over(wish))


def _plain(table: Mapping[str, Any]) -> dict[str, Any]:
    """Without settings that are None, which a recipe leaves out."""
    plain = {k: v for k, v in table.items() if v is not None}
    plain["steps"] = [{k: v for k, v in step.items() if v is not None} for step in table["steps"]]
    return plain


def _recipe(network: str, steps: Sequence[Mapping[str, Any]], seed: int) -> Recipe:
    known = NETWORKS.get(network)
    dataset = known.dataset if known else "digits"
    teacher, approximation, pruning, rounding, batch = _EPOCHS.get(dataset, _EPOCHS["digits"])
    epochs: dict[str, Callable[[], dict[str, Any]]] = {
        "approximation": lambda: {"epochs": approximation, "learning_rate": 2e-3},
        "pruning": lambda: {"epochs": pruning, "learning_rate": 4e-3},
        "quantization": lambda: {"epochs": rounding, "learning_rate": 2e-4},
    }
    trained = [
        {**step, "training": {**epochs[METHODS[step["method"]].card.family](), "batch_size": batch}} for step in steps
    ]
    return Recipe.from_dict(
        {
            "name": f"{network}-recommended",
            "network": network if known else "",
            "dataset": dataset,
            "seed": seed,
            "teacher": {"epochs": teacher, "learning_rate": 4e-3, "batch_size": batch, "label_smoothing": 0.1},
            "steps": trained,
        }
    )
