"""What a sceptic would ask of sparsity under encryption, measured: does it pay, where, and as much as was planned?

Run `python benchmarks/sparsity.py [--json]` on a machine that does nothing else. Five checks on the tenseal back end:
unstructured zeros do nothing in diagonal packing; they pay in proportion in column packing; a grid of diagonals makes the
MLP and a 1024-1024 layer faster than the best dense plan in diagonals; by the ratio that was planned; and 512 queries in
the packing that the planner chooses, with the crossover it states.

The first and the third are about diagonals alone. What the planner does beyond them changes both answers, and is told
beside: gathered inputs let unstructured zeros of a first layer pay, pitched copies make hidden dense layers cheap.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from he_runtime import price, run_clear
from he_runtime.batching import plan_batch
from he_runtime.cost import load_default
from he_runtime.cost.calibrate import machine_name
from he_runtime.model import CompressedModel, InputSpec, Node, OutputSpec
from he_runtime.reference import calibrate
from model_prep.data import load
from model_prep.networks import NETWORKS
from model_prep.reference_models import random_reference
from secateur.local import Local
from secateur.sweep_log import PointLog
from secateur.sweep_run import COLUMN, DENSE, DIAGONAL, Point, Study, libraries, model_facts
from secateur.together import GroupTimer

BACKEND = "tenseal"
GRID_SPARSITY = 0.9
TARGETS = {
    "unstructured_change": 0.05,
    "column_r_squared": 0.99,
    "mlp_speedup": 2.5,
    "layer_speedup": 3.5,
    "planned_ratio_error": 0.12,
}
Record = dict[str, Any]
_DENSE = Point(DIAGONAL, DENSE, 0.0)
_GRID = Point(DIAGONAL, "grid", GRID_SPARSITY)
_DIAGONALS_ALONE = {"pitched": False, "input_packings": ("plain", "windows", "staggered")}


def layer(size: int, seed: int = 0) -> CompressedModel:
    """One fully connected layer with random weights."""
    rng = np.random.default_rng(seed)
    arrays = {"weight": rng.normal(size=(size, size)) / np.sqrt(size), "bias": rng.normal(size=size) * 0.1}
    node = Node("fc", "dense", ("x",), (size,), {}, {"weight": "weight", "bias": "bias"})
    model = CompressedModel(f"layer-{size}", InputSpec("x", (size,)), OutputSpec("fc"), (node,), arrays)
    return calibrate(model, rng.uniform(-1, 1, size=(64, size)))


def inputs(network: str, count: int) -> npt.NDArray[np.float64]:
    """The first `count` normalized digits in a reference network's size; random ones would leave its ranges."""
    data = load("digits" if NETWORKS[network].dataset == "digits" else "digits-upscaled")
    return data.normalized("train")[:count].astype(np.float64)


class Bench:
    """Measurements that are made once each and kept in a log."""

    def __init__(self, log: PointLog, runs: int) -> None:
        self.log = log
        self.timer = GroupTimer(BACKEND, runs, lambda message: print(message, file=sys.stderr))

    def once(self, name: str, make: Callable[[], Record]) -> Record:
        """The record of that name, made now if the log has none."""
        for record in self.log.records:
            if record["name"] == name:
                return record
        print(f"{name} ...", file=sys.stderr)
        self.log.append({"name": name} | make())
        return self.log.records[-1]

    def points(self, network: str, make: Callable[[], CompressedModel], points: Sequence[Point]) -> list[Record]:
        """The records of points that are compared with each other: those that the log lacks are measured in turn."""
        names = {point: f"{network}, {point.packing}, {point.pattern}, {point.sparsity:g}" for point in points}
        there = {record["name"] for record in self.log.records}
        missing = [point for point in points if names[point] not in there]
        if missing:
            study = Study.of(make(), backend=BACKEND, **_DIAGONALS_ALONE)
            plans = {point: study.plan(point) for point in missing}
            found, free = self.timer.records(plans), replace(study, wish={})
            for point in missing:
                best = price(free.plan(point), load_default(BACKEND)).latency_ms
                facts = model_facts(study.sparse(point)) | {"planner_ms": best}
                self.log.append({"name": names[point]} | asdict(point) | facts | found[point])
        records = {record["name"]: record for record in self.log.records}
        return [records[names[point]] for point in points]


def _unstructured(sparsities: Sequence[float]) -> list[Point]:
    return [Point(DIAGONAL, "unstructured", s) for s in sparsities]


def unstructured(bench: Bench, network: str, sparsities: Sequence[float]) -> Record:
    """Largest relative change of the diagonal latency by unstructured zeros."""
    model = _reference(network)
    points = [_DENSE, *_unstructured(sparsities)]
    dense, *rows = bench.points(network, model, points)
    changes = [row["measured_ms"] / dense["measured_ms"] - 1 for row in rows]
    return {
        "network": network,
        "dense_ms": dense["measured_ms"],
        "sparsities": list(sparsities),
        "measured_ms": [row["measured_ms"] for row in rows],
        "planner_speedups": [dense["planner_ms"] / row["planner_ms"] for row in rows],
        "largest_change": max(changes, key=abs),
        "ok": max(map(abs, changes)) < TARGETS["unstructured_change"],
    }


def column(bench: Bench, network: str, sparsities: Sequence[float]) -> Record:
    """How linear column latency is in the number of weights: R squared, and what of it is independent of them."""
    model = _reference(network)
    points = [Point(COLUMN, "unstructured" if s else DENSE, s) for s in sparsities]
    rows = bench.points(network, model, points)
    weights, ms = ([float(row[key]) for row in rows] for key in ("nonzeros", "measured_ms"))
    r_squared = statistics.correlation(weights, ms) ** 2
    slope, intercept = statistics.linear_regression(weights, ms)
    return {
        "network": network,
        "weights": weights,
        "measured_ms": ms,
        "predicted_ms": [row["predicted_ms"] for row in rows],
        "r_squared": r_squared,
        "microseconds_per_weight": slope * 1e3,
        "constant_share_of_dense": intercept / ms[weights.index(max(weights))],
        "ok": r_squared >= TARGETS["column_r_squared"],
    }


def grid(bench: Bench, name: str, make: Callable[[], CompressedModel], target: float) -> Record:
    """Speedup of a grid of diagonals over the dense plan in diagonals, measured and planned; and of all that the planner can."""
    points = [_DENSE, _GRID]
    dense, sparse = bench.points(name, make, points)
    measured, planned = (dense[key] / sparse[key] for key in ("measured_ms", "predicted_ms"))
    return {
        "network": name,
        "sparsity": sparse["actual_sparsity"],
        "dense_ms": dense["measured_ms"],
        "sparse_ms": sparse["measured_ms"],
        "rotations": [dense["rotations"], sparse["rotations"]],
        "products": [dense["products"], sparse["products"]],
        "measured_speedup": measured,
        "planned_speedup": planned,
        "planner_speedup": dense["planner_ms"] / sparse["planner_ms"],
        "ratio_error": measured / planned - 1,
        "target": target,
        "ok": measured >= target and abs(measured / planned - 1) <= TARGETS["planned_ratio_error"],
    }


def batch(bench: Bench, network: str, samples: int) -> Record:
    """That many queries in the packing that the planner chooses: time, and answers against the clear plan."""

    def measured() -> Record:
        model = random_reference(network)
        found = plan_batch(model, samples)
        timed = bench.timer.records({network: found.plan})[network]
        x = inputs(network, min(samples, found.plan.batch))
        local = Local(found.plan, BACKEND)
        answers = local.decrypt_batch(local.evaluate(local.encrypt_batch(x)), len(x))
        clear = run_clear(found.plan, x)
        error = float(np.abs(answers - clear).max())
        runs = -(-samples // found.plan.batch)
        return timed | {
            "network": network,
            "samples": samples,
            "batch": found.plan.batch,
            "crossover": found.crossover,
            "single_predicted_ms": found.options[0].latency_ms,
            "all_ms": runs * timed["measured_ms"],
            "each_ms": runs * timed["measured_ms"] / samples,
            "max_error": error,
            "error_bound": found.plan.error_bound,
            "argmax_matches": int((answers.argmax(axis=1) == clear.argmax(axis=1)).sum()),
            "ok": error <= found.plan.error_bound,
        }

    return bench.once(f"{network}, batch {samples}", measured)


def _reference(network: str) -> Callable[[], CompressedModel]:
    return lambda: random_reference(network)


def sparsity(bench: Bench, quick: bool) -> Record:
    """All checks; `quick` takes the smallest network, layer and batch that show the same."""
    mlp, width, samples = ("digits-mlp", 64, 8) if quick else ("mnist-mlp", 1024, 512)
    some = (0.9,) if quick else (0.5, 0.75, 0.9)
    steps = (0.9, 0.95) if quick else (0.0, 0.25, 0.5, 0.75, 0.9, 0.95)
    batched = ("digits-mlp",) if quick else ("mnist-mlp", "mnist-tenseal-cnn")
    bench.points(mlp, _reference(mlp), [_DENSE, *_unstructured(some), _GRID])  # two checks share these: one measurement
    return {
        "unstructured": unstructured(bench, mlp, some),
        "column": column(bench, "digits-mlp", steps),
        "grid_mlp": grid(bench, mlp, _reference(mlp), TARGETS["mlp_speedup"]),
        "grid_layer": grid(bench, f"layer-{width}", lambda: layer(width), TARGETS["layer_speedup"]),
        "batches": [batch(bench, network, samples) for network in batched],
    }


def render(record: Record) -> None:
    """One line per check for a person."""
    a, b = record["unstructured"], record["column"]
    print(f"{record['machine']}, {BACKEND}, one thread, median of {record['runs']} runs")
    print(
        f"{_word(a)} unstructured zeros on {a['network']}: diagonal latency changes by {a['largest_change']:+.1%} at most"
    )
    print(f"{_word(b)} column packing of {b['network']}: R^2 {b['r_squared']:.4f} against the number of weights")
    for c in (record["grid_mlp"], record["grid_layer"]):
        print(
            f"{_word(c)} grid at {c['sparsity']:.1%} zeros on {c['network']}: {c['measured_speedup']:.2f} times faster "
            f"(planned {c['planned_speedup']:.2f}, target {c['target']}): {c['dense_ms']:.0f} to {c['sparse_ms']:.0f} ms; "
            f"of all that the planner can {c['planner_speedup']:.2f} times"
        )
    for d in record["batches"]:
        print(
            f"{_word(d)} {d['samples']} queries of {d['network']}: {d['batch']} a run, {d['all_ms']:.0f} ms in all, "
            f"{d['each_ms']:.2f} ms each; planned to pay from {d['crossover']} queries on"
        )


def _word(check: Record) -> str:
    return "ok  " if check["ok"] else "MISS"


def main(arguments: list[str] | None = None) -> None:
    """Measure what the log lacks, then print the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object")
    parser.add_argument("--log", type=Path, default=Path("sparsity.jsonl"), help="where finished measurements are kept")
    parser.add_argument("--restart", action="store_true", help="forget what the log holds")
    parser.add_argument("--runs", type=int, default=7, help="runs per plan, of which the median counts")
    parser.add_argument("--quick", action="store_true", help="small networks: shows that it works")
    options = parser.parse_args(arguments)
    if options.restart:
        options.log.unlink(missing_ok=True)
    settings = {"runs": options.runs, "quick": options.quick, "machine": machine_name()}
    bench = Bench(PointLog(options.log, settings), options.runs)
    checks = sparsity(bench, options.quick)
    record = {"backend": BACKEND, "libraries": libraries(BACKEND), "targets": TARGETS} | settings | checks
    if options.json:
        print(json.dumps(record))
    else:
        render(record)


if __name__ == "__main__":
    main()
