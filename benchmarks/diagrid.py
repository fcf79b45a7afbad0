"""What DiaGrid saves: a recipe's network against its dense twin, encrypted, in turn, on every back end.

Run `python benchmarks/diagrid.py [RECIPE ...] [--json]` on a machine that does nothing else; MNIST is looked for in
SECATEUR_DATA. The twin is the recipe without its "diagrid" step: the same teacher and quadratics, trained once, and the
planner's own best plan of it. Training goes on where an interrupted run stopped (`--states`). One thread on `native`;
`tenseal` has no more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("SECATEUR_THREADS", "1")  # read when the kernel is loaded

import numpy as np

from he_runtime import CompressedModel, compile, price
from he_runtime.cost import load_default
from he_runtime.reference import forward
from model_prep import Recipe, compress
from model_prep.checkpoints import Checkpoints
from model_prep.data import Dataset, load
from secateur.artifacts import find_recipe
from secateur.local import Local
from secateur.sweep_run import libraries
from secateur.together import GroupTimer
from secateur.trained import identity

RECIPES = ("mnist-mlp-diagrid", "mnist-lenet-diagrid")
BACKENDS = ("tenseal", "native")
_ROUNDS = 5
Record = dict[str, Any]


def networks(name: str, states: Path, data: Dataset) -> dict[str, CompressedModel]:
    """The dense twin and the pruned network of a recipe; what they begin with is trained once."""
    recipe, watcher = Recipe.load(find_recipe(name)), Checkpoints(states, identity())
    both = (("dense", dense_twin(recipe)), ("diagrid", recipe))
    return {kind: compress(None, r, data, watcher=watcher) for kind, r in both}


def dense_twin(recipe: Recipe) -> Recipe:
    """The recipe without its "diagrid" step."""
    return replace(recipe, steps=tuple(s for s in recipe.steps if s.card.name != "diagrid"))


def measured(models: dict[str, CompressedModel], data: Dataset, backend: str, runs: int) -> Record:
    """Medians of `runs` images each, the two networks in turn; counters must be the planned ones.

    The shipped table is of another day. How well operations predict plans is told by both timed in the same rounds.
    """
    table = load_default(backend)
    plans = {kind: compile(model, table=table) for kind, model in models.items()}
    locals_ = {kind: Local(plan, backend) for kind, plan in plans.items()}
    x = data.normalized("test")[:runs].astype(np.float64)
    clear = {kind: forward(model, x) for kind, model in models.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in models}
    same, error = 0, 0.0
    for index, image in enumerate(x):
        for kind, local in locals_.items():
            spent, got = local.timed(image)
            seconds[kind].append(spent)
            assert local.executor.counters == plans[kind].counts_on(backend)
            if kind == "diagrid":
                same += int(got.argmax() == clear[kind][index].argmax())
                error = max(error, float(np.abs(got - clear[kind][index]).max()))
    ms = {kind: 1e3 * statistics.median(times) for kind, times in seconds.items()}
    in_turn = GroupTimer(backend, _ROUNDS).records(plans)
    return {
        "backend": backend,
        "measured_ms": ms,
        "predicted_ms": {kind: price(plan, table).latency_ms for kind, plan in plans.items()},
        "ratio": ms["dense"] / ms["diagrid"],
        "prediction_error": {kind: timed["ratio"] - 1 for kind, timed in in_turn.items()},
        "argmax_same": same,
        "largest_error": error,
        "error_bound": plans["diagrid"].error_bound,
        "libraries": libraries(backend),
    }


def summary(name: str, states: Path, backends: Sequence[str], runs: int) -> Record:
    data = load(Recipe.load(find_recipe(name)).dataset)
    models = networks(name, states, data)
    accuracy = {kind: model.metadata["accuracy"]["final"] for kind, model in models.items()}
    rows = [measured(models, data, backend, runs) for backend in backends]
    return {"recipe": name, "data": data.name, "accuracy": accuracy, "runs": runs, "backends": rows}


def render(records: list[Record]) -> None:
    for record in records:
        dense, pruned = (f"{record['accuracy'][kind]:.2%}" for kind in ("dense", "diagrid"))
        print(
            f"{record['recipe']} on {record['data']}: accuracy {dense} dense, {pruned} pruned; {record['runs']} images"
        )
        for row in record["backends"]:
            ms, predicted, wrong = row["measured_ms"], row["predicted_ms"], row["prediction_error"]
            print(
                f"  {row['backend']:8} {ms['dense']:7.1f} -> {ms['diagrid']:6.1f} ms ({row['ratio']:.2f} times); predicted "
                f"{predicted['dense']:.1f} -> {predicted['diagrid']:.1f} (by operations timed in turn {wrong['dense']:+.0%} and "
                f"{wrong['diagrid']:+.0%}); argmax {row['argmax_same']}/{record['runs']}"
            )


def main(arguments: list[str] | None = None) -> None:
    """Train what is not trained yet, then measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(RECIPES), help="recipes with a diagrid step")
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object")
    parser.add_argument("--runs", type=int, default=21, help="encrypted images per network and back end")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only this one; repeatable")
    parser.add_argument("--states", type=Path, default=Path("diagrid.states"), help="where finished trainings are kept")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error("need at least one image")
    backends = options.backend or BACKENDS
    records = [summary(name, options.states, backends, options.runs) for name in options.recipes]
    if options.json:
        print(json.dumps({"recipes": records}))
    else:
        render(records)


if __name__ == "__main__":
    main()
