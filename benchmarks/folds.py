"""What compression costs in accuracy, over all of the digits and several seeds, against the limits that we set ourselves.

Run `python benchmarks/folds.py [GATE ...] [--json]`: on the digits five-fold cross-validation over all 1,797 images with three
seeds, on MNIST (in SECATEUR_DATA) its own split with one. A gate is a recipe, the step after which accuracy counts, and how
many points it may lose against the dense network, which is the recipe's teacher before anything was done to it. Finished
trainings are kept in a log (--log), one JSON line each, known by recipe, data and code: interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from he_runtime import CompressedModel, compile
from he_runtime.cost import load_default
from he_runtime.errors import SecateurError
from he_runtime.plan.counts import leaf_totals
from model_prep import Recipe, compress
from model_prep.checkpoints import Checkpoints
from model_prep.data import Dataset, digits_folds, load
from model_prep.watcher import TEACHER
from secateur.artifacts import find_recipe
from secateur.sweep_log import PointLog
from secateur.trained import identity

FOLDS, SEEDS = 5, (0, 1, 2)
BATCH = 4096  # queries at once: column packing
Record = dict[str, Any]


@dataclass(frozen=True)
class Gate:
    """At most `points` lost after `step`, or an accuracy of at least `least`; `fewer` times fewer weights; no products."""

    recipe: str
    step: str = "final"
    points: float | None = None
    least: float | None = None
    fewer: float = 1.0
    no_products: bool = False


GATES = {
    "binary": Gate("digits-cnn-binary", points=1.0, no_products=True),
    "patterns": Gate("digits-cnn-pattern", points=1.0),
    "int8": Gate("digits-cnn-int8", points=1.0),
    "trace": Gate("digits-cnn-trace", "trace", points=2.0),
    "progressive": Gate("mnist-lenet-progressive", points=0.5, fewer=100.0),
    "quadratics": Gate("mnist-lenet", "quadratics", least=0.989),
}


def trainings(gate: Gate, folds: int, seeds: Sequence[int]) -> Iterator[tuple[Recipe, Dataset]]:
    """Every run of a gate, up to the step that counts: the same folds for each seed."""
    recipe = Recipe.load(find_recipe(gate.recipe))
    names = [step.card.name for step in recipe.steps]
    if gate.step in names:
        recipe = replace(recipe, steps=recipe.steps[: names.index(gate.step) + 1])
    if recipe.dataset != "digits":
        yield recipe, load(recipe.dataset)
        return
    for seed in seeds:
        for data in digits_folds(FOLDS)[:folds]:
            yield replace(recipe, seed=seed), data


def made(gate: Gate, recipe: Recipe, data: Dataset, states: Path) -> Record:
    """One training: accuracies before and after, weights left, and products where none are allowed."""
    model = compress(None, recipe, data, quiet=True, watcher=Checkpoints(states, identity()))
    accuracy = model.metadata["accuracy"]
    weights = [model.arrays[node.arrays["weight"]] for node in model.nodes if "weight" in node.arrays]
    record = {
        "dense": accuracy[TEACHER],
        "compressed": accuracy[gate.step],
        "nonzeros": sum(int(np.count_nonzero(array)) for array in weights),
        "weights": sum(array.size for array in weights),
        "training_seconds": model.metadata["wall_seconds"],
    }
    return record | ({"products": products(model)} if gate.no_products else {})


def products(model: CompressedModel) -> int:
    """Plaintext products of the best plan in column packing."""
    plan = compile(model, table=load_default("tenseal"), degrees=(2 * BATCH,), batch=BATCH)
    return leaf_totals(plan.counts).get("mul_plain", 0)


def summary(name: str, gate: Gate, records: Sequence[Record]) -> Record:
    """Means over the runs, in points; `met` says whether the limit was kept."""
    dense, after = (statistics.fmean(r[key] for r in records) for key in ("dense", "compressed"))
    lost, fewer = 100 * (dense - after), min(r["weights"] / max(1, r["nonzeros"]) for r in records)
    kept = (gate.points is None or lost <= gate.points) and (gate.least is None or after >= gate.least)
    most = max((r.get("products", 0) for r in records), default=0)
    return {
        "gate": name,
        "recipe": gate.recipe,
        "step": gate.step,
        "data": sorted({r["data"] for r in records}),
        "runs": len(records),
        "dense": dense,
        "compressed": after,
        "points_lost": lost,
        "worst_run": max(100 * (r["dense"] - r["compressed"]) for r in records),
        "fewer_weights": fewer,
        "products": most if gate.no_products else None,
        "asked": {"points": gate.points, "least": gate.least, "fewer": gate.fewer, "no_products": gate.no_products},
        "met": kept and fewer >= gate.fewer and most == 0,
    }


def fill(log: PointLog, name: str, folds: int, seeds: Sequence[int], states: Path) -> list[Record]:
    """The records of a gate; those that the log lacks are made."""
    gate, code, found = GATES[name], identity()[:16], []
    for recipe, data in trainings(gate, folds, seeds):
        about = {"gate": name, "recipe": recipe.to_dict(), "data": data.name, "seed": recipe.seed, "code": code}
        known = next((r for r in log.records if all(r[key] == value for key, value in about.items())), None)
        if known is None:
            print(f"{name}: {data.name}, seed {recipe.seed} ...", file=sys.stderr)
            log.append(known := json.loads(json.dumps(about)) | made(gate, recipe, data, states))
        found.append(known)
    return found


def render(rows: Sequence[Record]) -> None:
    print(f"{'gate':12} {'runs':>4} {'dense':>8} {'after':>8} {'lost':>6} {'worst':>6}  limit")
    for row in rows:
        asked = row["asked"]
        limit = f"{asked['points']:g} points" if asked["points"] is not None else f"at least {asked['least']:.1%}"
        extra = f", {row['fewer_weights']:.0f} times fewer weights" if asked["fewer"] > 1 else ""
        extra += f", {row['products']} products" if asked["no_products"] else ""
        print(
            f"{row['gate']:12} {row['runs']:4} {row['dense']:8.2%} {row['compressed']:8.2%} {row['points_lost']:6.2f} "
            f"{row['worst_run']:6.2f}  {limit}: {'met' if row['met'] else 'MISSED'}{extra}"
        )


def main(arguments: list[str] | None = None) -> None:
    """Make what is missing, then say which limits are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gates", nargs="*", default=list(GATES), help=f"some of {', '.join(GATES)}")
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object")
    parser.add_argument("--folds", type=int, default=FOLDS, help=f"of the {FOLDS}, the first so many")
    parser.add_argument("--seed", action="append", type=int, help="only this one; repeatable")
    parser.add_argument("--log", type=Path, default=Path("folds.jsonl"), help="where finished trainings are kept")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.gates if name not in GATES]
    if unknown or not 1 <= options.folds <= FOLDS:
        parser.error(
            f"got gates {unknown} and {options.folds} folds, need some of {', '.join(GATES)}, 1 to {FOLDS} folds"
        )
    log, states = PointLog(options.log, {"folds": FOLDS}), options.log.with_suffix(".states")
    rows, failed = [], []
    for name in options.gates:
        try:
            rows.append(summary(name, GATES[name], fill(log, name, options.folds, options.seed or SEEDS, states)))
        except SecateurError as error:
            failed.append({"gate": name, "why": error.message})
            print(f"{name}: {error.message}", file=sys.stderr)
    if options.json:
        print(json.dumps({"gates": rows, "failed": failed, "code": identity()[:16]}))
    else:
        render(rows)


if __name__ == "__main__":
    main()
