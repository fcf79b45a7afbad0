"""What answers of labels only would cost: a network with an argmax under encryption behind it, planned and priced.

    python -m benchmarks.label_only MODEL [--signs 2] [--sharpenings 1]

All pairs of logits are compared at once: their differences over the calibrated range go through a composite sign (g3 and f3
of Cheon, Kim, Kim, ASIACRYPT'20, degree 7, three levels each), and each class multiplies its comparisons in a tree. Prints
one JSON object: levels, ring, milliseconds and key bytes by the cost table, how many calibration samples get a
one-hot answer within 0.1, and how many the right largest element. SECURITY.md says why this is not offered.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from he_runtime import CompressedModel, compile, price
from he_runtime.cost import load_default
from he_runtime.errors import DoesNotFit
from he_runtime.model import Node
from he_runtime.reference import calibrate, forward

_G3 = np.array([4589, -16577, 25614, -12860]) / 1024
_F3 = np.array([35, -35, 21, -5]) / 16
_REACH = 1.35  # the steep polynomial overshoots so far


class _Tail:
    """Nodes behind a model."""

    def __init__(self, model: CompressedModel) -> None:
        self.nodes, self.arrays = list(model.nodes), dict(model.arrays)

    def add(self, op: str, inputs: tuple[str, ...], size: int, attrs: Any = None, **arrays: Any) -> str:
        name = f"label_{len(self.nodes)}"
        for role, values in arrays.items():
            self.arrays[f"{name}.{role}"] = np.asarray(values, dtype=np.float64)
        roles = {role: f"{name}.{role}" for role in arrays}
        self.nodes.append(Node(name, op, inputs, (size,), attrs or {}, roles))
        return name


def label_only(model: CompressedModel, signs: int, sharpenings: int) -> CompressedModel:
    """The model with an indicator of its largest output as its output."""
    samples = model.mean_square("samples")
    if samples is None:
        raise SystemExit("cannot calibrate: the model kept no samples; try `secateur compress` anew")
    low, high = model.ranges[model.output.node]
    classes = forward(model, samples[:1]).size
    tail, others = _Tail(model), classes - 1
    rows = 1 << (others - 1).bit_length()  # comparisons per class, filled up with ones
    weight, bias = np.zeros((rows * classes, classes)), np.zeros(rows * classes)
    for i in range(classes):
        for k, j in enumerate(j for j in range(classes) if j != i):
            weight[k * classes + i, [i, j]] = 1 / (high - low), -1 / (high - low)
    bias[others * classes :] = 1.0
    size = rows * classes
    x = tail.add("reshape", (model.output.node,), classes)
    x = tail.add("dense", (x,), size, weight=weight, bias=bias)
    for odd in [_G3] * signs + [_F3] * sharpenings:
        coefficients = np.zeros(2 * len(odd))
        coefficients[1::2] = odd
        interval = {"basis": "power", "low": -_REACH, "high": _REACH}
        x = tail.add("polynomial", (x,), size, interval, coefficients=coefficients)
    x = tail.add("affine", (x,), size, scale=0.5, shift=0.5)
    while size > classes:
        half, every = size // 2, np.eye(size)
        sides = tuple(tail.add("dense", (x,), half, weight=w) for w in (every[:half], every[half:]))
        x, size = tail.add("multiply", sides, half), half
    return calibrate(
        model.with_(nodes=tuple(tail.nodes), arrays=tail.arrays, output=replace(model.output, node=x)), samples
    )


def measured(model: CompressedModel, signs: int, sharpenings: int) -> dict[str, Any]:
    """Both models' plans in figures, by the tenseal table; `refused` where the longer one has no plan."""
    table, longer = load_default("tenseal"), label_only(model, signs, sharpenings)
    samples = longer.mean_square("samples")
    assert samples is not None  # label_only has asked for them
    scores, marks = (forward(m, samples).reshape(len(samples), -1) for m in (model, longer))
    right = scores.argmax(axis=1)
    found: dict[str, Any] = {
        "model": model.name,
        "signs": signs,
        "sharpenings": sharpenings,
        "largest_is_right": float((marks.argmax(axis=1) == right).mean()),
        "one_hot_within_a_tenth": float((np.abs(marks - np.eye(scores.shape[1])[right]).max(axis=1) < 0.1).mean()),
    }
    for name, each, max_error in (("scores", model, None), ("labels", longer, 0.25)):
        try:
            plan = compile(each, table=table, max_error=max_error)
        except DoesNotFit as error:
            found[name] = {"refused": error.message}
            continue
        report = price(plan, table)
        found[name] = {
            "N": plan.params.degree,
            "levels": plan.params.max_level,
            "latency_ms": report.latency_ms,
            "key_bytes": report.key_bytes,
            "error_bound": plan.error_bound,
        }
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the model, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--signs", type=int, default=2)
    parser.add_argument("--sharpenings", type=int, default=1)
    given = parser.parse_args(arguments)
    print(json.dumps(measured(CompressedModel.load(given.model), given.signs, given.sharpenings)))


if __name__ == "__main__":
    main()
