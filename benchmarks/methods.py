"""Every compression method at several sparsities: what it costs in accuracy and what it saves under encryption.

Run `python benchmarks/methods.py [--json]` on a machine that does nothing else; it takes hours. Methods, settings and the
training budget that all share are in methods_grid.py. Finished points are kept in a log, one JSON line each, known by the
digest of the recipe and of the code: interrupted, the script goes on where it stopped. The network before pruning is
trained once per seed. The two MNIST networks need MNIST in SECATEUR_DATA.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from methods_equal import at_equal_accuracy, render_equal
from methods_grid import BACKEND, BUDGETS, ROWS, Candidate, candidates, missing
from methods_report import render, summary, write_plot

from he_runtime import CompressedModel, Plan, compile, price
from he_runtime.compile import DEGREES
from he_runtime.cost import CostTable, load_default
from he_runtime.cost.calibrate import machine_name
from he_runtime.errors import DoesNotFit, SecateurError
from he_runtime.lower.input_layouts import GATHERED, INPUT_PACKINGS
from model_prep import compress
from model_prep.checkpoints import Checkpoints
from model_prep.graph import Graph
from model_prep.stage import Stage
from secateur.sweep_log import PointLog
from secateur.sweep_run import COLUMN, DIAGONAL, libraries, model_facts
from secateur.together import GroupTimer
from secateur.trained import identity

PACKINGS = (DIAGONAL, COLUMN)
QUICK = (("digits-mlp",), ("dense", "magnitude", "diagonals"))
Record = dict[str, Any]


class Shared(Checkpoints):
    """Keeps the network up to its first step, which all methods share, and nothing of what follows."""

    def done(self, name: str, number: int, total: int, stage: Stage) -> None:
        if number <= 1:
            super().done(name, number, total, stage)


class Bench:
    """Makes the points that a log lacks."""

    def __init__(self, log: PointLog, backend: str, runs: int, states: Path, data: Path | None = None) -> None:
        self.log, self.backend, self.data, self.states = log, backend, data, states
        self.table: CostTable = load_default(backend)
        self.code, self.revision = identity()[:16], revision()
        self._timer = GroupTimer(backend, runs, _say)

    def fill(self, wanted: Sequence[Candidate], any_code: bool = False) -> None:
        for number, candidate in enumerate(wanted, 1):
            if self.find(candidate, any_code) is None:
                _say(f"{number} of {len(wanted)}: {candidate.recipe.name}, seed {candidate.recipe.seed} ...")
                self.log.append(self._about(candidate) | self._made(candidate))

    def find(self, candidate: Candidate, any_code: bool = False) -> Record | None:
        """The point of this recipe, made by this code (or by any; then the last)."""
        for record in reversed(self.log.records):
            if record["recipe_digest"] == candidate.digest and (any_code or record["code"] == self.code):
                return record
        return None

    def _about(self, candidate: Candidate) -> Record:
        return {
            "network": candidate.network,
            "row": candidate.row,
            "setting": candidate.setting,
            "seed": candidate.recipe.seed,
            "packing": candidate.packing,
            "recipe": candidate.recipe.to_dict(),
            "recipe_digest": candidate.digest,
            "code": self.code,
            "revision": self.revision,
        }

    def _made(self, candidate: Candidate) -> Record:
        """All that is known of a candidate; one that cannot be made says why."""
        started = time.monotonic()
        shared = Shared(self.states, self.code)
        try:
            model = compress(None, candidate.recipe, quiet=True, data_directory=self.data, watcher=shared)
        except SecateurError as error:
            return {"made": False, "why": error.message, "wall_seconds": time.monotonic() - started}
        record = {"made": True} | network_facts(model) | self._measured(model, BUDGETS[candidate.network].no_column)
        return record | {"wall_seconds": time.monotonic() - started}

    def _measured(self, model: CompressedModel, no_column: str = "") -> Record:
        """Both packings, unless there is a reason against column: the price by the shipped table, and the time in turn with single operations."""
        plans: dict[str, Plan] = {}
        found: dict[str, Record] = {}
        for packing in PACKINGS:
            if packing == COLUMN and no_column:
                found[packing] = {"fits": False, "why": no_column}
                continue
            try:
                plans[packing] = planned(model, packing, self.table)
                found[packing] = {"fits": True} | priced(plans[packing], self.table)
                if packing == DIAGONAL:
                    found[packing]["ungathered_ms"] = ungathered_ms(model, self.table)
            except DoesNotFit as error:
                found[packing] = {"fits": False, "why": error.message}
        for packing, plan in plans.items():
            try:
                (timed,) = self._timer.records({packing: plan}).values()
            except DoesNotFit as error:  # of memory
                found[packing]["why"] = error.message
                continue
            keys = ("measured_ms", "wall_ms", "runs", "disturbed_runs", "counters_equal")
            found[packing] |= {key: timed[key] for key in keys} | {"calibrated_ms": timed["predicted_ms"]}
        return {"packings": found}


def planned(model: CompressedModel, packing: str, table: CostTable) -> Plan:
    """One query per ciphertext, or one in every slot. Raises DoesNotFit."""
    if packing == DIAGONAL:
        return compile(model, table=table)
    reasons = []
    for degree in DEGREES:
        try:
            return compile(model, degrees=(degree,), batch=degree // 2, table=table)
        except DoesNotFit as error:
            reasons.append(error.message)
    raise DoesNotFit(reasons[0])


def ungathered_ms(model: CompressedModel, table: CostTable) -> float | None:
    """The price where the client does not order its input by the zeros of the first layer, which it would learn; None
    where no ring holds that."""
    try:
        return price(compile(model, table=table, input_packings=set(INPUT_PACKINGS) - {GATHERED}), table).latency_ms
    except DoesNotFit:
        return None


def priced(plan: Plan, table: CostTable) -> Record:
    """What a record says of a plan before it runs; `predicted_ms` by the table that it was planned with."""
    report = price(plan, table)
    return {
        "N": plan.params.degree,
        "log2_qp": plan.params.log2_qp,
        "batch": plan.batch,
        "levels": report.levels,
        "counts": dict(report.counts),
        "rotations": report.rotations,
        "products": report.products,
        "upload_bytes": report.upload_bytes,
        "key_bytes": report.key_bytes,
        "error_bound": plan.error_bound,
        "predicted_ms": report.latency_ms,
    }


def network_facts(model: CompressedModel) -> Record:
    """Accuracy, size and training of a network; `flops` are the multiply-adds left, one per weight and position."""
    positions = Graph.from_model(model).positions()
    facts = model.metadata
    return {
        "accuracy": facts["accuracy"]["final"],
        "teacher_accuracy": facts["accuracy"]["teacher"],
        "nonzeros": model_facts(model)["nonzeros"],
        "flops": sum(int(np.count_nonzero(model.arrays[key])) * count for key, count in positions.items()),
        "epochs": sum(step["epochs"] for step in facts["steps"][1:]),
        "training_seconds": facts["wall_seconds"],
        "data": facts["data"],
        "steps": [{k: v for k, v in step.items() if k in ("method", "epochs", "density")} for step in facts["steps"]],
    }


def revision() -> str:
    """The commit of this checkout, with a mark where the packages differ from it; "unknown" outside of one."""
    root = Path(__file__).resolve().parent.parent
    try:
        commit, changes = (
            subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "model_prep", "he_runtime"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("-dirty" if changes else "")


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object")
    parser.add_argument("--log", type=Path, default=Path("methods.jsonl"), help="where finished points are kept")
    parser.add_argument("--plot", type=Path, help="where the picture goes; beside the log otherwise")
    parser.add_argument("--restart", action="store_true", help="forget what the log holds")
    parser.add_argument("--any-code", action="store_true", help="take points that other code made")
    parser.add_argument("--report", action="store_true", help="make no point, only say what the log holds")
    parser.add_argument("--backend", default=BACKEND, choices=("tenseal", "native", "pyfhel"))
    parser.add_argument("--runs", type=int, default=5, help="runs per plan, of which the median counts")
    parser.add_argument("--data", type=Path, help="where MNIST lies; SECATEUR_DATA otherwise")
    parser.add_argument("--network", action="append", choices=tuple(BUDGETS), help="only this one; repeatable")
    parser.add_argument("--method", action="append", choices=tuple(ROWS), help="only this row; repeatable")
    parser.add_argument("--seed", action="append", type=int, help="only this one; repeatable")
    parser.add_argument("--value", action="append", help="only this setting, such as 0.5; repeatable")
    parser.add_argument("--quick", action="store_true", help="a few points of the smallest network")
    return parser.parse_args(arguments)


def _wanted(options: argparse.Namespace) -> list[Candidate]:
    networks, rows = QUICK if options.quick else (tuple(BUDGETS), tuple(ROWS))
    seeds = [0] if options.quick and not options.seed else options.seed
    found: Iterable[Candidate] = candidates(options.network or networks, options.method or rows)
    return [
        c
        for c in found
        if (not seeds or c.recipe.seed in seeds) and (not options.value or str(c.value) in options.value)
    ]


def main(arguments: list[str] | None = None) -> None:
    """Make the missing points, then summarize the log."""
    options = _options(arguments)
    states = options.log.with_suffix(".states")
    if options.restart:
        options.log.unlink(missing_ok=True)
    table = load_default(options.backend)
    settings = {"backend": options.backend, "runs": options.runs, "machine": machine_name(), "table": table.digest}
    bench = Bench(PointLog(options.log, settings), options.backend, options.runs, states, options.data)
    wanted = _wanted(options)
    if not options.report:
        bench.fill(wanted, options.any_code)
    points = [found for c in wanted if (found := bench.find(c, options.any_code or options.report)) is not None]
    record = summary(points) | settings | {
        "threads": 1,
        "code": bench.code,
        "revision": bench.revision,
        "libraries": libraries(options.backend),
        "budgets": {name: vars(BUDGETS[name]) for name in dict.fromkeys(c.network for c in wanted)},
        "asked": len(wanted),
        **missing(),
        "at_equal_accuracy": at_equal_accuracy(points),
        "plot": write_plot(points, options.plot or options.log.with_suffix(".png")),
        "points": points,
    }  # fmt: skip
    if options.json:
        print(json.dumps(record))
    else:
        render(record)
        render_equal(record["at_equal_accuracy"])


if __name__ == "__main__":
    main()
