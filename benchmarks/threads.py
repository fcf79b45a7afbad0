"""How much of two processes' throughput one process with two threads reaches, on the native back end.

Run `python benchmarks/threads.py [--json]` on a machine that does nothing else: LeNet (32-64-512) with the weights and the plan
of `secateur bench mnist`, or with --network digits-cnn random ones; one process with N threads and N processes with one thread each
evaluate for some seconds in turn. LeNet needs MNIST in SECATEUR_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from he_runtime import CompressedModel, Plan, compile
from he_runtime.cost import load_default
from model_prep.data import load
from model_prep.reference_models import random_reference
from secateur.contenders import cores, plan_for
from secateur.kernel_threads import use_threads
from secateur.local import Local
from secateur.mnist_networks import dense_model

NETWORKS = ("mnist-lenet", "digits-cnn")
LEAST = 0.85


def planned(network: str) -> Plan:
    """What every process runs."""
    if network == "mnist-lenet":
        return plan_for(dense_model("lenet", load("mnist"), None), "native")
    model: CompressedModel = random_reference(network)
    return compile(model, table=load_default("native"))


def work(plan: Path, threads: int) -> None:
    """One of the processes: for every line of input, evaluate for as many seconds and print how often that was."""
    local = Local(Plan.load(plan), "native")
    use_threads(threads)
    encrypted = local.encrypt(np.zeros(local.executor.plan.inputs[0].shape))
    local.evaluate(encrypted)
    print("ready", flush=True)
    for line in sys.stdin:
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < float(line):
            local.evaluate(encrypted)
            count += 1
        print(count / (time.perf_counter() - began), flush=True)


class Workers:
    """`count` processes with `threads` threads each, ready to evaluate."""

    def __init__(self, plan: Path, count: int, threads: int) -> None:
        command = [sys.executable, __file__, "--work", str(plan), "--threads", str(threads)]
        environment = os.environ | {"SECATEUR_THREADS": str(threads)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        self._processes = [subprocess.Popen(command, **pipes) for _ in range(count)]
        for process in self._processes:
            self._line(process)

    def per_second(self, seconds: float) -> float:
        """Inferences per second of all together."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        return sum(float(self._line(process)) for process in self._processes)

    def close(self) -> None:
        for process in self._processes:
            process.communicate()

    @staticmethod
    def _line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit("cannot measure: a process ended early; its own message is above")
        return line


def compared(plan: Plan, count: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Inferences per second of one process with `count` threads and of `count` processes, in turn."""
    with tempfile.TemporaryDirectory() as name:
        where = plan.save(Path(name) / "plan")
        groups = {"threads": Workers(where, 1, count), "processes": Workers(where, count, 1)}
        found: dict[str, list[float]] = {group: [] for group in groups}
        for _ in range(rounds):
            for group, workers in groups.items():
                found[group].append(workers.per_second(seconds))
        for workers in groups.values():
            workers.close()
    shares = [a / b for a, b in zip(found["threads"], found["processes"], strict=True)]
    return {
        "N": plan.params.degree,
        "gadget": plan.gadget,
        "threads_per_s": statistics.median(found["threads"]),
        "processes_per_s": statistics.median(found["processes"]),
        "shares": [round(share, 3) for share in shares],
        "share": statistics.median(shares),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default=NETWORKS[0])
    parser.add_argument("--threads", type=int, default=cores(), help="of the one process, and how many the others are")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each process in each round")
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work is not None:
        work(options.work, options.threads)
        return
    if options.threads < 1 or options.rounds < 1 or options.seconds <= 0:
        parser.error("need at least one thread and one round, and more than no seconds")
    found = {"network": options.network, "threads": options.threads, "seconds": options.seconds}
    found |= compared(planned(options.network), options.threads, options.rounds, options.seconds)
    found |= {"asked": LEAST, "met": found["share"] >= LEAST}
    if options.json:
        print(json.dumps(found))
    else:
        print(
            f"{found['network']}: {found['threads_per_s']:.2f} inferences per second with {options.threads} threads, "
            f"{found['processes_per_s']:.2f} with as many processes: {found['share']:.3f} (asked {LEAST})"
        )


if __name__ == "__main__":
    main()
