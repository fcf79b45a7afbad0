"""`compress`: the outline of preparation, one line per step. Each step is a function here that one module implements."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from he_runtime import compile
from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel
from he_runtime.reference import calibrate, forward

from .capture import capture
from .data import Dataset, load
from .diagonals import diagonal_mask
from .folding import fold, fold_affine
from .graph import Graph, weight_keys
from .masks import Mask, magnitude_mask, scheduled_density
from .networks import build
from .packing import packed_classes
from .polynomial import constrain, range_penalty, replace_activations
from .quantize import quantize_model
from .recipe import Pruning, Recipe
from .train import Hooks, accuracy, fit, predict
from .trainable import TrainableGraph, straight_through

__all__ = ["compress"]

Float32 = npt.NDArray[np.float32]
_Schedule = Callable[[float], float]  # a final density -> the density of the moment
_FIT_SAMPLES = 2048
_REFERENCE_BATCH = 256


@dataclass
class _Run:
    """What every step of one compression shares, and what has been measured so far: test logits per stage, and facts."""

    recipe: Recipe
    data: Dataset
    x: Float32
    x_test: Float32
    quiet: bool
    logits: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def fit(self, net: nn.Module, training: Any, label: str, **options: Any) -> None:
        fit(net, self.x, self.data.y_train, training, seed=self.recipe.seed, label=label, quiet=self.quiet, **options)

    def measure(self, stage: str, net: nn.Module) -> None:
        self.logits[stage] = predict(net, self.x_test)


def compress(
    model: nn.Module | None,
    recipe: Recipe,
    data: Dataset | None = None,
    *,
    quiet: bool = False,
    data_directory: Path | str | None = None,
) -> CompressedModel:
    """Train (if the recipe says so), replace activations, prune, fold, quantize and calibrate a module.

    `model` None builds the recipe's reference network; `data` None loads the recipe's data set. A module given by the
    caller is trained in place. The result's metadata reports every stage's accuracy on the test set and how far each
    step moved the logits.

    Raises ModelError where the module cannot be captured or the recipe cannot be met, and DoesNotFit where diagonals
    are to be pruned and no packing holds the network.
    """
    started = time.monotonic()
    with _threads(recipe.threads):
        run = _prepare(recipe, data, data_directory, quiet)
        teacher = _train_teacher(run, model if model is not None else _reference_network(recipe))
        captured = fold_affine(_capture(run, teacher))
        student = _polynomialize(run, captured)
        _prune(run, student, TrainableGraph(captured))
        folded = fold(student.to_graph())
        quantized = _quantize(run, folded)
        calibrated = _calibrate(run, quantized)
        return _describe(run, calibrated, time.monotonic() - started)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prepare(recipe: Recipe, data: Dataset | None, directory: Path | str | None, quiet: bool) -> _Run:
    data = data if data is not None else load(recipe.dataset, directory)
    if recipe.train_limit:
        data = data.subset(recipe.train_limit, len(data.x_test))
    return _Run(recipe, data, data.normalized("train"), data.normalized("test"), quiet)


def _reference_network(recipe: Recipe) -> nn.Module:
    if not recipe.network:
        raise ModelError(f"cannot compress by recipe {recipe.name!r}: it names no network; try passing a module")
    return build(recipe.network, recipe.seed)


def _train_teacher(run: _Run, module: nn.Module) -> nn.Module:
    _capture(run, module)  # what cannot be captured is refused before the training, not after
    run.fit(module, run.recipe.teacher, "teacher")
    run.measure("teacher", module)
    return module


def _capture(run: _Run, module: nn.Module) -> Graph:
    graph = capture(module, run.x[:2], input_name=run.data.input_spec.name)
    shape, classes = graph.shape_of(graph.output), len(run.data.labels)
    if shape != (classes,):
        raise ModelError(f"cannot compress: the network yields shape {shape}, need one logit per label, ({classes},)")
    return graph


def _polynomialize(run: _Run, captured: Graph) -> TrainableGraph:
    """Replace activations by quadratics and distil; a network of squares only passes through."""
    settings = run.recipe.polynomial
    graph, sites = replace_activations(captured, run.x[:_FIT_SAMPLES])
    net = TrainableGraph(graph, sites)
    if sites:

        def blend(progress: float) -> None:
            net.blend = 1.0 if progress >= settings.blend else progress / settings.blend

        hooks = Hooks(before_step=blend, after_step=lambda: constrain(net), penalty=_range_penalty(run, net))
        run.fit(net, settings.training, "polynomial", teacher=TrainableGraph(captured), hooks=hooks)
        net.blend = 1.0
    run.measure("polynomial", net)
    return net


def _range_penalty(run: _Run, net: TrainableGraph) -> Callable[[], Tensor] | None:
    """The recipe's penalty on inputs of quadratics that leave their range; None where it is switched off."""
    settings = run.recipe.polynomial
    if not settings.range_penalty:
        return None
    return lambda: settings.range_penalty * range_penalty(net, settings.range_exponent)


def _prune(run: _Run, net: TrainableGraph, teacher: TrainableGraph) -> None:
    """Raise sparsity over the ramp, ranking dense shadow weights each epoch; then freeze the mask and retrain."""
    settings = run.recipe.pruning
    if settings is None:
        return
    final: list[Mask] = []
    rank = _ranking(run, net, settings)

    def choose(progress: float) -> None:
        if final:
            return
        mask = rank(lambda density: scheduled_density(density, progress, settings.ramp))
        net.masks = {key: torch.from_numpy(keep) for key, keep in mask.keep.items()}
        if progress >= settings.ramp:
            final.append(mask)

    def apply() -> None:
        constrain(net)
        if final:
            with torch.no_grad():
                for key, keep in net.masks.items():
                    net.parameter(key).mul_(keep)

    hooks = Hooks(before_epoch=choose, after_step=apply, penalty=_range_penalty(run, net))
    run.fit(net, settings.training, "pruning", teacher=teacher, hooks=hooks)
    choose(1.0)
    apply()
    _refuse_collapse(final[0])
    run.measure("pruned", net)
    run.facts["pruning"] = final[0].report(net.graph.positions())


def _ranking(run: _Run, net: TrainableGraph, settings: Pruning) -> Callable[[_Schedule], Mask]:
    """How the recipe's structure chooses a mask from the weights as they are, at the densities of the moment."""

    def weights() -> dict[str, npt.NDArray[np.float64]]:
        return {key: net.parameter(key).detach().double().numpy() for key in net.weight_keys()}

    if settings.structure == "magnitude":
        return lambda schedule: magnitude_mask(weights(), schedule(settings.density), settings.minimum)
    names = weight_keys(net.graph)
    unknown = sorted(set(settings.layers) - set(names.values()))
    if unknown:
        raise ModelError(f"cannot prune layers {unknown}: need some of {sorted(names.values())}")
    density = {key: settings.layers.get(name, settings.density) for key, name in names.items()}
    classes = packed_classes(net.graph, settings.degree or _planned_degree(run, net))
    return lambda schedule: diagonal_mask(weights(), classes, {key: schedule(d) for key, d in density.items()})


def _planned_degree(run: _Run, net: TrainableGraph) -> int:
    """The ring degree of the plan of the network before pruning, whose packing the pruned one will share."""
    model = fold(net.to_graph()).to_model(run.recipe.name, run.data.input_spec)
    return compile(calibrate(model, run.x[:_FIT_SAMPLES].astype(np.float64))).params.degree


def _refuse_collapse(mask: Mask) -> None:
    if mask.collapsed():
        raise ModelError(
            f"cannot prune so far: no weight is left in {mask.collapsed()}; try a higher density or a larger minimum"
        )


def _quantize(run: _Run, graph: Graph) -> CompressedModel:
    """Straight-through training on the folded network, then integers; without the step, the folded network as it is."""
    settings, data, spec = run.recipe.quantization, run.data, run.data.input_spec
    net = TrainableGraph(graph)
    run.measure("folded", net)
    if settings is None:
        return graph.to_model(run.recipe.name, spec, data.labels)
    keys = net.weight_keys()
    if run.recipe.pruning is not None:
        net.masks = {key: torch.from_numpy(np.asarray(graph.arrays[key]) != 0) for key in keys}
    net.rounding = dict.fromkeys(keys, partial(straight_through, bits=settings.bits))
    teacher = TrainableGraph(graph)
    run.fit(net, settings.training, "quantization", teacher=teacher)
    model = net.to_graph().to_model(run.recipe.name, spec, data.labels)
    return quantize_model(model, keys, settings.bits)


def _calibrate(run: _Run, model: CompressedModel) -> CompressedModel:
    settings = run.recipe.calibration
    calibrated = calibrate(model, run.x[: settings.samples].astype(np.float64), settings.margin)
    batches = range(0, len(run.x_test), _REFERENCE_BATCH)
    run.logits["final"] = np.concatenate(
        [forward(calibrated, run.x_test[i : i + _REFERENCE_BATCH].astype(np.float64)) for i in batches]
    )
    return calibrated


def _describe(run: _Run, model: CompressedModel, seconds: float) -> CompressedModel:
    """Metadata: accuracy per stage, the error that each step adds to the logits, sparsity, provenance."""
    y = run.data.y_test
    report = {
        "recipe": run.recipe.to_dict(),
        "data": run.data.name,
        "seed": run.recipe.seed,
        "weights": "trained",
        "test_samples": len(y),
        "accuracy": {stage: round(accuracy(logits, y), 6) for stage, logits in run.logits.items()},
        "logit_rms_change": _changes(run.logits),
        "wall_seconds": round(seconds, 2),
    }
    return model.with_(metadata={**model.metadata, **report, **run.facts})


def _changes(logits: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    """RMS difference of the test logits between the stages that one step lies between."""
    steps = {
        "approximation": ("teacher", "polynomial"),
        "pruning": ("polynomial", "pruned"),
        "quantization": ("folded", "final"),
    }
    return {
        name: float(np.sqrt(np.mean((logits[after].astype(np.float64) - logits[before]) ** 2)))
        for name, (before, after) in steps.items()
        if before in logits and after in logits
    }
