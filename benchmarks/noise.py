"""Predicted against observed errors of encrypted inference, on every reference network.

Run `python benchmarks/noise.py [--json]`; no timing, so the machine may be busy. Images are encrypted, evaluated on the
tenseal back end and decrypted, every twenty under keys of their own, and compared with the same plan on plain slots. What
they differ by must be as large as the planner said, and small beside the distance between the two largest outputs.
Finished images are kept in a log: interrupted, the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from he_runtime import Plan, compile, run_clear
from he_runtime.cost import load_default
from he_runtime.errors import InputError
from model_prep.data import load
from model_prep.networks import NETWORKS
from model_prep.reference_models import random_reference
from secateur.local import Local
from secateur.sweep_log import PointLog
from secateur.sweep_run import libraries

BACKEND = "tenseal"
TARGETS = {"rms_over_sigma": [0.5, 1.1], "bound_over_margin": 0.25}
QUICK = ("digits-mlp",)
QUICK_SIZE = (4, 2)  # images, and how many share their keys
Floats = npt.NDArray[np.float64]
Record = dict[str, Any]


def inputs(network: str, count: int) -> Floats:
    """The first `count` normalized digits in a reference network's size; random ones would leave its ranges."""
    data = load("digits" if NETWORKS[network].dataset == "digits" else "digits-upscaled")
    return data.normalized("train")[:count].astype(np.float64)


def measure(log: PointLog, networks: Sequence[str], images: int, per_key: int) -> None:
    """Fill the log with what it lacks: one record per key."""
    for network in networks:
        done = {r["first"] for r in log.records if r["network"] == network}
        missing = [first for first in range(0, images, per_key) if first not in done]
        if not missing:
            continue
        _say(f"{network}: planning and encoding weights")
        planned = compile(random_reference(network), table=load_default(BACKEND))
        _require_same_plan(log, network, planned)
        local, x = Local(planned, BACKEND), inputs(network, images)
        for first in missing:
            part = x[first : first + per_key]
            if first != missing[0]:
                local.fresh_keys()
            _say(f"{network}: images {first + 1} to {first + len(part)} of {images}")
            answers = np.stack([local.decrypt(local.evaluate(local.encrypt(sample))) for sample in part])
            found = comparison(answers.reshape(len(part), -1), run_clear(planned, part).reshape(len(part), -1))
            log.append({"network": network, "first": first} | of_plan(planned) | found)


def of_plan(planned: Plan) -> Record:
    """What the planner predicted, and on which parameters."""
    return {
        "plan": planned.digest,
        "sigma": planned.sigma,
        "error_bound": planned.error_bound,
        "N": planned.params.degree,
        "log2_qp": planned.params.log2_qp,
    }


def comparison(encrypted: Floats, clear: Floats) -> Record:
    """Outputs (images, classes), decrypted and clear: what adds up over keys."""
    errors, ordered = encrypted - clear, np.sort(clear, axis=1)
    return {
        "images": len(clear),
        "outputs": errors.size,
        "squared_error": float((errors**2).sum()),
        "largest_error": float(np.abs(errors).max()),
        "margins": (ordered[:, -1] - ordered[:, -2]).tolist(),
        "argmax_matches": int((encrypted.argmax(axis=1) == clear.argmax(axis=1)).sum()),
    }


def _require_same_plan(log: PointLog, network: str, planned: Plan) -> None:
    if any(r["network"] == network and r["plan"] != planned.digest for r in log.records):
        raise InputError(
            f"cannot go on with {network}: the log holds images of another plan of it; try another file, or --restart"
        )


def summary(network: str, records: Sequence[Record]) -> Record:
    """One network over all its keys, against the targets."""
    rms = math.sqrt(sum(r["squared_error"] for r in records) / sum(r["outputs"] for r in records))
    largest = max(r["largest_error"] for r in records)
    margin = statistics.median(m for r in records for m in r["margins"])
    plan = records[0]
    low, high = TARGETS["rms_over_sigma"]
    ratio, share = rms / plan["sigma"], plan["error_bound"] / margin
    return {
        "network": network,
        "images": sum(r["images"] for r in records),
        "keys": len(records),
        "rms_over_sigma": ratio,
        "rms_error": rms,
        "sigma": plan["sigma"],
        "largest_error": largest,
        "error_bound": plan["error_bound"],
        "median_margin": margin,
        "bound_over_margin": share,
        "argmax_matches": sum(r["argmax_matches"] for r in records),
        "N": plan["N"],
        "log2_qp": plan["log2_qp"],
        "ok": low <= ratio <= high and largest <= plan["error_bound"] and share <= TARGETS["bound_over_margin"],
    }


def render(record: Record) -> None:
    """A row per network for a person."""
    print(f"{BACKEND}, fresh keys every {record['images_per_key']} images")
    print(
        f"{'':5}{'network':19}{'N':>6}{'log2 QP':>9}{'RMS/sigma':>11}{'largest':>10}{'bound':>10}{'of margin':>11}{'argmax':>9}"
    )
    for row in record["networks"]:
        print(
            f"{'ok' if row['ok'] else 'MISS':5}{row['network']:19}{row['N']:6}{row['log2_qp']:9.1f}{row['rms_over_sigma']:11.3f}"
            f"{row['largest_error']:10.2g}{row['error_bound']:10.2g}{row['bound_over_margin']:11.1%}"
            f"{row['argmax_matches']:5}/{row['images']}"
        )


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """Run what the log lacks, then judge every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print exactly one JSON object")
    parser.add_argument("--log", type=Path, default=Path("noise.jsonl"), help="where finished images are kept")
    parser.add_argument("--restart", action="store_true", help="forget what the log holds")
    parser.add_argument("--images", type=int, default=100, help="encrypted images per network")
    parser.add_argument("--images-per-key", type=int, default=20, help="of which so many share their keys")
    parser.add_argument("--network", action="append", choices=list(NETWORKS), help="only this one; repeatable")
    parser.add_argument("--quick", action="store_true", help="a few images of a small network: shows that it works")
    options = parser.parse_args(arguments)
    networks = options.network or (QUICK if options.quick else tuple(NETWORKS))
    images, per_key = QUICK_SIZE if options.quick else (options.images, options.images_per_key)
    if min(images, per_key) < 1:
        parser.error("need at least one image, and one per key")
    if options.restart:
        options.log.unlink(missing_ok=True)
    settings = {"images": images, "images_per_key": per_key}
    log = PointLog(options.log, settings)
    measure(log, networks, images, per_key)
    rows = [summary(name, [r for r in log.records if r["network"] == name]) for name in networks]
    record = settings | {"networks": rows, "ok": all(row["ok"] for row in rows), "targets": TARGETS}
    record |= {"backend": BACKEND, "libraries": libraries(BACKEND)}
    if options.json:
        print(json.dumps(record))
    else:
        render(record)


if __name__ == "__main__":
    main()
