"""What pitched copies save (he_runtime/lower/pitch.py): every reference network planned with and without, run in turn.

Run `python benchmarks/copies.py [NETWORK ...] [--json]` on a machine that does nothing else. The networks are untrained. The error may be a
twentieth of the largest output, so that precision decides nothing. One thread on `native`; `tenseal` has no more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from typing import Any

os.environ.setdefault("SECATEUR_THREADS", "1")  # read when the kernel is loaded

import numpy as np

from he_runtime import CompressedModel, Plan, compile, price
from he_runtime.cost import load_default
from he_runtime.plan.counts import leaf_totals, products, rotations
from model_prep.networks import NETWORKS
from model_prep.reference_models import random_reference
from secateur.local import Local

BACKENDS = ("tenseal", "native")
_ERROR = 0.05  # of the largest output
Record = dict[str, Any]


def plans(model: CompressedModel, backend: str) -> dict[str, Plan]:
    low, high = model.ranges[model.output.node]
    budget = _ERROR * max(abs(low), abs(high))
    return {
        kind: compile(model, table=load_default(backend), max_error=budget, pitched=kind == "copies")
        for kind in ("plain", "copies")
    }


def measured(name: str, backend: str, runs: int) -> Record:
    """Medians of `runs` inferences of each plan, in turn; counters must be the planned ones."""
    found = plans(random_reference(name), backend)
    locals_ = {kind: Local(plan, backend) for kind, plan in found.items()}
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {kind: [] for kind in found}
    for _ in range(runs):
        x = rng.normal(size=found["plain"].inputs[0].shape)
        for kind, local in locals_.items():
            seconds[kind].append(local.timed(x)[0])
            assert local.executor.counters == found[kind].counts_on(backend)
    ms = {kind: 1e3 * statistics.median(times) for kind, times in seconds.items()}
    table = load_default(backend)
    return {
        "network": name,
        "backend": backend,
        "measured_ms": ms,
        "ratio": ms["plain"] / ms["copies"],
        "predicted_ms": {kind: price(plan, table).latency_ms for kind, plan in found.items()},
        "rotations": {kind: rotations(leaf_totals(plan.counts_on(backend))) for kind, plan in found.items()},
        "products": {kind: products(leaf_totals(plan.counts_on(backend))) for kind, plan in found.items()},
        "layers": [layer.name for layer in found["copies"].layers if "copies" in layer.layout],
    }


def main(arguments: list[str] | None = None) -> None:
    """Plan and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help="reference networks")
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object")
    parser.add_argument("--runs", type=int, default=11, help="inferences per plan")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only this one; repeatable")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error("need at least one run")
    rows = [measured(name, b, options.runs) for name in options.networks for b in options.backend or BACKENDS]
    if options.json:
        print(json.dumps({"rows": rows}))
        return
    for row in rows:
        ms, turns, many = row["measured_ms"], row["rotations"], row["products"]
        print(
            f"{row['network']:18} {row['backend']:8} {ms['plain']:7.1f} -> {ms['copies']:7.1f} ms ({row['ratio']:.2f} times)  "
            f"{turns['plain']:3} -> {turns['copies']:3} rotations  {many['plain']:4} -> {many['copies']:4} products"
        )


if __name__ == "__main__":
    main()
