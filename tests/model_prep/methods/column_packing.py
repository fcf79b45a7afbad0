"""One feature per ciphertext: what a mask costs there, counted by hand, and a run under encryption."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from he_runtime import Plan, compile, run_clear
from he_runtime.cost import load_default
from he_runtime.model import CompressedModel, Node
from he_runtime.plan import Kind
from he_runtime.plan.counts import layer_counts, leaf_totals
from he_runtime.reference import forward
from tests.model_prep.methods.encrypted import encrypted_outputs

DEGREE = 8192
BATCH = DEGREE // 2


def counted(model: CompressedModel) -> dict[str, int]:
    """Layer -> products of a linear one, squares of an activation.

    A tap counts once per output position whose input lies inside the image and depends on the input at all.
    """
    live = {model.input.name: np.ones(model.input.shape, dtype=np.bool_)}
    counts: dict[str, int] = {}
    for node in model.nodes:
        (source,) = node.inputs
        if node.op in ("dense", "conv2d"):
            weight = model.arrays[node.arrays["weight"]]
            products = _dense(weight, live[source]) if node.op == "dense" else _conv(weight, live[source], node)
            counts[node.name] = int(products.sum())
            live[node.name] = products > 0
        else:
            live[node.name] = live[source].reshape(node.shape)
            if node.op == "quadratic":
                counts[node.name] = int(live[source].sum())
    return counts


def _dense(weight: npt.NDArray[np.generic], live: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    return np.asarray((weight != 0).astype(np.int64) @ live.astype(np.int64))


def _conv(weight: npt.NDArray[np.generic], live: npt.NDArray[np.bool_], node: Node) -> npt.NDArray[np.int64]:
    (stride_y, stride_x), (pad_y, pad_x) = node.attrs["stride"], node.attrs["padding"]
    padded = np.pad(live.astype(np.int64), ((0, 0), (pad_y, pad_y), (pad_x, pad_x)))
    products = np.zeros(node.shape, dtype=np.int64)
    _, height, width = node.shape
    for out, channel, dy, dx in zip(*np.nonzero(weight), strict=True):
        rows = slice(dy, dy + stride_y * (height - 1) + 1, stride_y)
        columns = slice(dx, dx + stride_x * (width - 1) + 1, stride_x)
        products[out] += padded[channel, rows, columns]
    return products


@dataclass(frozen=True)
class Encrypted:
    """Of one run: outputs (n, classes), the largest error against the clear run, and the plan."""

    outputs: npt.NDArray[np.float64]
    error: float
    plan: Plan


def run_encrypted(
    model: CompressedModel, x: npt.NDArray[np.float32], batch: int = BATCH, backend: str = "tenseal"
) -> Encrypted:
    """All samples (n, *shape) at once; executed counters must be the planned ones."""
    samples = x.astype(np.float64)
    plan = compile(model, degrees=(DEGREE, 2 * DEGREE), batch=batch, table=load_default(backend))
    found = encrypted_outputs(plan, samples, backend)
    clear = forward(model, samples)
    np.testing.assert_allclose(run_clear(plan, samples[:batch]), clear[:batch], atol=1e-6 * float(np.abs(clear).max()))
    return Encrypted(found, float(np.abs(found - clear).max()), plan)


def planned(plan: Plan) -> dict[str, int]:
    """Terms of each linear layer and squares of each activation, by layer.

    A term is a product with a plaintext, or none where the planner finds that its weight is a sign.
    """
    terms = Counter(op.layer for op in plan.ops if op.kind is Kind.SQUARE)
    for op in plan.ops:
        if op.kind is Kind.LINEAR_TRANSFORM and op.cells is not None:
            terms[op.layer] += len(op.cells)
    for layer, counts in layer_counts(plan).items():
        assert leaf_totals(counts).get("mul_plain", 0) <= terms[layer]
    return dict(terms)
