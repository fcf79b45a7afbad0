"""Predicted against measured latency on plans that calibration never saw.

Run `python benchmarks/prediction.py [--json]` on a machine that does nothing else. Calibration times single operations
only, between the rounds of each group (network, packing, back end); a price is operation counts times these. The plans of
a group are run in turn, round by round; the median of the runs with a steady probe counts. Finished groups are kept in a
log: interrupted, the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from he_runtime import Plan
from he_runtime.cost.calibrate import machine_name
from he_runtime.errors import DoesNotFit
from model_prep.reference_models import random_reference
from secateur.sweep_log import PointLog
from secateur.sweep_run import COLUMN, DIAGONAL, Point, Study, agreement, interleaved, libraries, model_facts, points_of
from secateur.together import GroupTimer

BACKENDS = ("tenseal", "pyfhel")
SPARSITIES = (0.0, 0.3, 0.5, 0.65, 0.77, 0.86, 0.92, 0.96)
TARGETS = {"n": 30, "mape": 0.12, "spearman": 0.97, "worst_group_spearman": 0.9, "group_size": 8}


@dataclass(frozen=True)
class Group:
    """A network in one packing and one pattern of zeros; its sparsities make one group per back end."""

    network: str
    packing: str
    pattern: str

    def points(self, sparsities: Sequence[float]) -> list[Point]:
        return points_of([self.packing], [self.pattern], sparsities)


GROUPS = (
    Group("digits-mlp", DIAGONAL, "grid"),
    Group("digits-cnn", DIAGONAL, "diagonals"),
    Group("mnist-mlp", DIAGONAL, "grid"),
    Group("mnist-lola", DIAGONAL, "diagonals"),
    Group("digits-mlp", interleaved(256), "permuted-grid"),
    Group("digits-mlp", COLUMN, "unstructured"),
)
QUICK = (Group("digits-mlp", DIAGONAL, "grid"),)
QUICK_SPARSITIES = (0.86, 0.96)


def measure(
    log: PointLog, groups: Sequence[Group], backends: Sequence[str], sparsities: Sequence[float], **timing: Any
) -> None:
    """Fill the log with what it lacks, group by group; the plans of a group are run in turn."""
    studies: dict[str, Study] = {}
    total, done = len(groups) * len(backends), 0
    for backend in backends:
        for group in groups:
            done += 1
            missing = [p for p in group.points(sparsities) if not _there(log, group, backend, p)]
            if not missing:
                continue
            if group.network not in studies:
                studies[group.network] = Study.of(random_reference(group.network))
            title = f"group {done} of {total}: {backend}, {group.network}, {group.packing}"
            for record in _measured(studies[group.network], missing, backend, title, **timing):
                log.append({"backend": backend} | asdict(group) | record)


def _measured(study: Study, points: Sequence[Point], backend: str, title: str, **timing: Any) -> list[dict[str, Any]]:
    """The records of the points of one group; one that does not fit says why."""
    plans: dict[Point, Plan] = {}
    known: dict[Point, dict[str, Any]] = {}
    for point in points:
        _say(f"{title}: planning {point.sparsity:.0%} zeros")
        known[point] = asdict(point)
        try:
            plans[point] = study.plan(point)
        except DoesNotFit as error:
            known[point] |= {"fits": False, "why": error.message}
            continue
        known[point] |= {"fits": True} | model_facts(study.sparse(point))
    found = GroupTimer(backend, report=lambda message: _say(f"{title}: {message}"), **timing).records(plans)
    return [known[point] | found.get(point, {}) for point in points]


def _there(log: PointLog, group: Group, backend: str, point: Point) -> bool:
    return any(r["backend"] == backend and r["network"] == group.network and point.matches(r) for r in log.records)


def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Agreement over all plans and within each group; plans that were not measured are listed, not counted."""
    measured = [r for r in records if r.get("measured_ms")]
    keys = dict.fromkeys((r["network"], r["packing"], r["backend"]) for r in records)
    groups = []
    for network, packing, backend in keys:
        inside = [r for r in measured if (r["network"], r["packing"], r["backend"]) == (network, packing, backend)]
        groups.append({"network": network, "packing": packing, "backend": backend} | agreement(inside))
    ranks = [g["spearman"] for g in groups if g["spearman"] is not None]
    left_out = [r for r in records if not r.get("measured_ms")]
    return agreement(measured) | {
        "worst_group_spearman": min(ranks) if ranks else None,
        "smallest_group": min((g["n"] for g in groups), default=0),
        "groups": groups,
        "left_out": [{k: r[k] for k in ("network", "packing", "backend", "sparsity", "why")} for r in left_out],
        "counters_equal": all(r["counters_equal"] for r in measured),
        "disturbed_runs": sum(r["disturbed_runs"] for r in measured),
        "targets": TARGETS,
    }


def render(record: dict[str, Any]) -> None:
    """The groups as a table for a person, then the totals."""
    print(f"{record['machine']}, one thread, median of {record['runs']} runs")
    print(f"{'network':20}{'packing':18}{'back end':10}{'plans':>6}{'mean error':>12}{'Spearman':>10}")
    for group in record["groups"]:
        error = "" if group["mape"] is None else f"{group['mape']:.1%}"
        rank = "" if group["spearman"] is None else f"{group['spearman']:.3f}"
        print(f"{group['network']:20}{group['packing']:18}{group['backend']:10}{group['n']:6}{error:>12}{rank:>10}")
    if record["n"]:
        print(f"all {record['n']} plans: mean error {record['mape']:.1%}, Spearman {record['spearman']}")
    for row in record["left_out"]:
        print(f"left out: {row['network']}, {row['packing']}, {row['backend']}, {row['sparsity']:.0%}: {row['why']}")


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing, then summarize the log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object")
    parser.add_argument("--log", type=Path, default=Path("prediction.jsonl"), help="where finished plans are kept")
    parser.add_argument("--restart", action="store_true", help="forget what the log holds")
    parser.add_argument("--runs", type=int, default=7, help="runs per plan, of which the median counts")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only this one; repeatable")
    parser.add_argument("--quick", action="store_true", help="one small group of two plans: shows that it works")
    options = parser.parse_args(arguments)
    groups, sparsities = (QUICK, QUICK_SPARSITIES) if options.quick else (GROUPS, SPARSITIES)
    backends = tuple(options.backend or (BACKENDS[:1] if options.quick else BACKENDS))
    if options.restart:
        options.log.unlink(missing_ok=True)
    settings = {"runs": options.runs, "quick": options.quick, "machine": machine_name()}
    log = PointLog(options.log, settings)
    measure(log, groups, backends, sparsities, runs=options.runs)
    chosen = [r for r in log.records if r["backend"] in backends]
    used = {name: version for backend in backends for name, version in libraries(backend).items()}
    record = summary(chosen) | settings | {"libraries": used, "plans": chosen}
    if options.json:
        print(json.dumps(record))
    else:
        render(record)


if __name__ == "__main__":
    main()
