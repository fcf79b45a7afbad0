"""`compress`: the outline of preparation. Steps are methods (model_prep.methods), in the order of the recipe."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel
from he_runtime.reference import calibrate, forward

from .capture.capture import capture
from .data import Dataset, load
from .folding.folding import fold_affine
from .graph import Graph
from .methods import Method, Quadratics
from .networks import build
from .polynomials.ranges import monitor, settle_ranges
from .recipe import Recipe
from .stage import Stage
from .train import accuracy, fit
from .trainable import TrainableGraph
from .watcher import TEACHER, Watcher

__all__ = ["compress"]

_REFERENCE_BATCH = 256


def compress(
    model: nn.Module | None,
    recipe: Recipe | Method,
    data: Dataset | None = None,
    *,
    quiet: bool = False,
    data_directory: Path | str | None = None,
    watcher: Watcher | None = None,
) -> CompressedModel:
    """Train (if the recipe says so), apply the recipe's steps, fold and calibrate a module.

    A single method stands for a recipe with that step alone. `model` None builds the recipe's reference network; `data`
    None loads the recipe's data set. A module given by the caller is trained in place. Activations that no step replaces
    become quadratics, fitted and not trained. The metadata report every step, its accuracy on the test set and how far it
    moved the logits. `watcher` is told of every step, and may put an interrupted compression back on its way.

    Raises ModelError where the module cannot be captured or the recipe cannot be met, and DoesNotFit where the packing
    is needed and none holds the network.
    """
    started = time.monotonic()
    recipe = recipe if isinstance(recipe, Recipe) else Recipe(recipe.card.name, steps=(recipe,))
    with _threads(recipe.threads):
        data = _data(recipe, data, data_directory)
        module = model if model is not None else _reference_network(recipe)
        stage = _untrained(recipe, data, module, quiet)
        _run_steps(recipe, stage, module, watcher or Watcher(), started)
        stage.fold()
        if not stage.quantizers:
            stage.measure("folded")
        calibrated = _calibrate(recipe, stage)
        return _describe(recipe, data, stage, calibrated, time.monotonic() - started)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _data(recipe: Recipe, data: Dataset | None, directory: Path | str | None) -> Dataset:
    data = data if data is not None else load(recipe.dataset, directory)
    return data.subset(recipe.train_limit, len(data.x_test)) if recipe.train_limit else data


def _reference_network(recipe: Recipe) -> nn.Module:
    if not recipe.network:
        raise ModelError(f"cannot compress by recipe {recipe.name!r}: it names no network; try passing a module")
    return build(recipe.network, recipe.seed)


def _untrained(recipe: Recipe, data: Dataset, module: nn.Module, quiet: bool) -> Stage:
    """The module as a stage; what cannot be captured is refused before the training, not after."""
    x = data.normalized("train")
    graph = fold_affine(_captured(module, data, x))
    return Stage(
        name=recipe.name,
        net=TrainableGraph(graph),
        teacher=TrainableGraph(graph),
        input_spec=data.input_spec,
        labels=data.labels,
        x=x,
        y=data.y_train,
        x_test=data.normalized("test"),
        y_test=data.y_test,
        seed=recipe.seed,
        quiet=quiet,
    )


def _run_steps(recipe: Recipe, stage: Stage, module: nn.Module, watcher: Watcher, started: float) -> None:
    """The training of the teacher and the recipe's steps, from where the watcher says an earlier run stopped."""
    steps = _steps(recipe, stage.net.graph)
    last, total = watcher.restore(stage, recipe, steps), len(steps)
    before = stage.seconds
    if last is None:
        watcher.begins(TEACHER, 0, total)
        _train(recipe, stage, module)
        stage.seconds = before + time.monotonic() - started
        watcher.done(TEACHER, 0, total, stage)
    for number, step in list(enumerate(steps, 1))[last or 0 :]:
        watcher.begins(step.card.name, number, total)
        stage.begin_step(f"step {number} of {total}: {step.card.name}")
        step.apply(stage)
        stage.measure(step.card.name)
        stage.end_step({"method": step.card.name, "family": step.card.family, "lowers": step.card.lowers})
        stage.seconds = before + time.monotonic() - started
        watcher.done(step.card.name, number, total, stage)
    stage.seconds = before


def _train(recipe: Recipe, stage: Stage, module: nn.Module) -> None:
    """Train the module; the stage's network and teacher are what became of it."""
    fit(module, stage.x, stage.y, recipe.teacher, seed=recipe.seed, label=TEACHER, quiet=stage.quiet)
    graph = fold_affine(capture(module, stage.x[:2], input_name=stage.input_spec.name))
    stage.net, stage.teacher = TrainableGraph(graph), TrainableGraph(graph)
    stage.measure(TEACHER)


def _captured(module: nn.Module, data: Dataset, x: npt.NDArray[np.float32]) -> Graph:
    graph = capture(module, x[:2], input_name=data.input_spec.name)
    shape, classes = graph.shape_of(graph.output), len(data.labels)
    if shape != (classes,):
        raise ModelError(f"cannot compress: the network yields shape {shape}, need one logit per label, ({classes},)")
    return graph


def _steps(recipe: Recipe, graph: Graph) -> tuple[Method, ...]:
    """The recipe's; activations that no step replaces become quadratics first."""
    replaced = any(step.card.family == "approximation" for step in recipe.steps)
    return recipe.steps if replaced or not graph.activations() else (Quadratics(), *recipe.steps)


def _calibrate(recipe: Recipe, stage: Stage) -> CompressedModel:
    """The artifact with its ranges and mean squares, the interval of every polynomial, and what of the test set leaves it."""
    settings = recipe.calibration
    seen, x = stage.x[: settings.samples].astype(np.float64), stage.x_test.astype(np.float64)
    model = calibrate(settle_ranges(stage.to_model(), seen, settings.margin), seen, settings.margin)
    batches = range(0, len(x), _REFERENCE_BATCH)
    stage.logits["final"] = np.concatenate([forward(model, x[i : i + _REFERENCE_BATCH]) for i in batches])
    return monitor(model, seen, x, settings.margin)


def _describe(recipe: Recipe, data: Dataset, stage: Stage, model: CompressedModel, seconds: float) -> CompressedModel:
    """Metadata: accuracy per step, the error that each adds to the logits, what each reported, provenance."""
    report = {
        "recipe": recipe.to_dict(),
        "data": data.name,
        "seed": recipe.seed,
        "weights": "trained",
        "test_samples": len(data.y_test),
        "accuracy": {step: round(accuracy(logits, data.y_test), 6) for step, logits in stage.logits.items()},
        "logit_rms_change": _changes(stage.logits),
        "steps": stage.steps,
        "wall_seconds": round(stage.seconds + seconds, 2),
    }
    return model.with_(metadata={**model.metadata, **report})


def _changes(logits: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    """RMS difference of the test logits that each step made."""
    names = list(logits)
    return {
        after: float(np.sqrt(np.mean((logits[after].astype(np.float64) - logits[before]) ** 2)))
        for before, after in pairwise(names)
    }
