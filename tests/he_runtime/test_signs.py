"""Weights of one magnitude with one feature per ciphertext: additions and subtractions, no product and no level."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from he_runtime import Executor, Plan, compile, price, run_clear
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.cost import load_default
from he_runtime.kernel import status
from he_runtime.model import CompressedModel
from he_runtime.plan import Kind
from he_runtime.plan.counts import layer_counts, leaf_totals
from he_runtime.reference import forward
from he_runtime.ring import EvaluationKeys
from tests.he_runtime.networks import Builder

BATCH = 4096  # one feature per ciphertext at N=8192
BACKENDS = [
    "tenseal",
    pytest.param("pyfhel", marks=[pytest.mark.pyfhel]),
    pytest.param("native", marks=[pytest.mark.skipif(not status().available, reason="the kernel is not built")]),
]
Floats = npt.NDArray[np.float64]


def signs(values: Floats, zeros: float = 0.0, alpha: float = 0.0) -> Floats:
    """+-alpha by sign, the smallest weights zero."""
    kept = np.abs(values) >= np.quantile(np.abs(values), zeros)
    return np.asarray(np.sign(values) * kept * (alpha or 0.4 / np.sqrt(values[0].size)))


def network(kind: str, quadratics: str = "square") -> tuple[Builder, CompressedModel]:
    """16-12-8-4; `kind` is that of the weights, "by row" of which have a scale of their own per row.

    Biases near one keep the squares from having tails, which no multiple of a standard deviation would bound.
    """
    b = Builder((16,))
    for inputs, outputs in ((16, 12), (12, 8), (8, 4)):
        key = f"{b.dense(inputs, outputs)}.weight"
        weight = b.arrays[key] = b.arrays[key] * 0.3
        if kind == "3 bits":
            step = float(np.abs(weight).max()) / 3
            b.arrays[key] = np.rint(weight / step) * step
        elif kind != "real":
            weight = signs(weight, 0.4 if kind == "ternary" else 0.0)
            by_row = kind == "by row" and outputs > 4
            b.arrays[key] = weight * b.rng.uniform(0.4, 1.2, (outputs, 1)) if by_row else weight
        b.arrays[key.replace("weight", "bias")] += 1.0
        if outputs > 4:
            b.square((outputs,)) if quadratics == "square" else b.quadratic((outputs,))
    return b, b.calibrated("signs")


def planned(model: CompressedModel, backend: str = "tenseal", **options: Any) -> Plan:
    largest = max(map(abs, model.ranges[model.output.node]))
    settings: dict[str, Any] = {"degrees": (8192,), "batch": BATCH, "max_error": 0.05 * largest, **options}
    return compile(model, table=load_default(backend), **settings)


def totals(plan: Plan, name: str) -> dict[str, int]:
    return leaf_totals(layer_counts(plan)[name])


def weights(model: CompressedModel) -> dict[str, Floats]:
    return {n.name: np.asarray(model.arrays[n.arrays["weight"]]) for n in model.nodes if n.op == "dense"}


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_signs_cost_additions_and_subtractions_only(kind: str) -> None:
    _, model = network(kind)
    plan = planned(model)
    for name, weight in weights(model).items():
        plus, minus = (weight > 0).sum(axis=1), (weight < 0).sum(axis=1)
        subtracted = int(((plus > 0) & (minus > 0)).sum())
        expected = {
            "add": int(np.maximum(plus - 1, 0).sum() + np.maximum(minus - 1, 0).sum()),
            "sub": subtracted,
            "negate": int(((plus == 0) & (minus > 0)).sum()),
            "add_plain": len(weight),
        }
        assert totals(plan, name) == {leaf: n for leaf, n in expected.items() if n}
    assert "mul_plain" not in leaf_totals(plan.counts)


def test_other_integers_stay_products() -> None:
    _, model = network("3 bits")
    plan = planned(model)
    for name, weight in weights(model).items():
        integers = np.rint(weight / (np.abs(weight).max() / 3)).astype(int)
        assert totals(plan, name)["mul_plain"] == int((np.abs(integers) > 1).sum())


def test_signs_take_no_level() -> None:
    """Each square may drop a prime, no linear layer does; real weights take one more level, and longer primes."""
    (_, real), (_, binary) = network("real"), network("binary")
    dear, cheap = planned(real), planned(binary)
    rescaled = {op.layer for op in cheap.ops if op.kind is Kind.RESCALE}
    assert rescaled <= {n.name for n in binary.nodes if n.op == "quadratic"}
    assert len(cheap.params.primes) < len(dear.params.primes)
    assert cheap.params.log2_qp < dear.params.log2_qp
    table = load_default("tenseal")
    assert price(cheap, table).latency_ms < 0.6 * price(dear, table).latency_ms
    assert planned(binary, degrees=(4096, 8192), batch=2048).params.degree == 4096
    assert planned(real, degrees=(4096, 8192), batch=2048).params.degree == 8192


@pytest.mark.parametrize("quadratics", ["square", "learned"])
def test_scales_per_row_and_learned_quadratics_cost_one_product_per_activation(quadratics: str) -> None:
    b, model = network("by row", quadratics)
    plan = planned(model)
    for name in weights(model):
        assert "mul_plain" not in totals(plan, name)
    for node in model.nodes:
        if node.op == "quadratic":
            assert totals(plan, node.name)["mul_plain"] == node.shape[0]
    x = b.inputs(7)
    np.testing.assert_allclose(run_clear(plan, x), forward(model, x), atol=1e-9)


def test_a_row_without_weights_is_a_constant() -> None:
    b = Builder((6,))
    first = b.dense(6, 4)
    b.arrays[f"{first}.weight"] = signs(b.arrays[f"{first}.weight"]) * np.array([[1.0], [0.0], [0.37], [0.8]])
    b.square((4,))
    second = b.dense(4, 2)
    b.arrays[f"{second}.weight"] = signs(b.arrays[f"{second}.weight"])
    model = b.calibrated("empty row")
    plan = planned(model)
    assert totals(plan, first).get("mul_plain", 0) == 0
    assert len({v for op in plan.ops if op.layer == first for v in op.outputs if op.cells is not None}) == 3
    np.testing.assert_allclose(run_clear(plan, b.inputs(5)), forward(model, b.inputs(5)), atol=1e-9)


def special_rows(b: Builder, name: str) -> None:
    """Rows that are a copy, a negative copy, and a sum of negatives alone."""
    key = f"{name}.weight"
    weight = signs(b.arrays[key], alpha=0.1)
    weight[0], weight[1], weight[2] = 0, 0, -0.1
    weight[0, 1], weight[1, 2] = 0.1, -0.1
    b.arrays[key] = weight


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["binary", "ternary", "3 bits", "by row", "learned", "special"])
def test_encrypted_signs_are_within_the_predicted_error(kind: str, backend: str) -> None:
    b, model = network("by row" if kind == "learned" else kind, "learned" if kind == "learned" else "square")
    if kind == "special":
        for name in ("dense0", "dense2"):
            special_rows(b, name)
        model = b.calibrated("signs")
    plan = planned(model)
    spec, secret = plan.client_spec(), SecretKey.generate(plan.params)
    executor = Executor(plan, backend)
    keys = executor.load_keys(EvaluationKeys(plan.params.digest, {r.element: r for r in secret.make_keys(plan.keys)}))
    x = b.inputs(64)
    sent = [secret.encrypt(v, spec.input.level, spec.input.scale) for v in spec.input.pack(x)]
    received = np.stack([secret.decrypt(c) for c in executor.run(sent, keys)])
    error = spec.output.unpack(received, len(x)) - run_clear(plan, x)
    assert float(np.abs(error).max()) <= 1.5 * plan.error_bound  # random weights have tails (test_contract.py)
    assert 0.3 < float(np.sqrt((error**2).mean())) / plan.sigma < 1.4
    assert executor.counters == plan.counts_on(backend)


def test_the_native_kernel_sums_signs_in_one_fused_call() -> None:
    """There a constant product is part of the pass that adds, and costs less than an addition by itself (decision 0021)."""
    _, model = network("binary")
    plan = planned(model)
    cells = sum(int(np.count_nonzero(weight)) for weight in weights(model).values())
    assert leaf_totals(plan.counts_on("native"))["constant_product"] == cells
    table = load_default("native")
    assert table.lookup("constant_product", 8192, 2).seconds < table.lookup("add", 8192, 2).seconds


def test_a_binary_convolution_has_no_products() -> None:
    b = Builder((1, 6, 6))
    shape = b.conv((1, 6, 6), 3, 3, 1, 1)
    b.square(shape)
    b.conv(shape, 4, 3, 2, 1)
    b.square((4, 3, 3))
    b.add("reshape", (36,))
    b.dense(36, 5)
    for key in [k for k in b.arrays if k.endswith("weight")]:
        scale = b.rng.uniform(0.5, 1.0, (len(b.arrays[key]), 1, 1, 1)) if b.arrays[key].ndim == 4 else 1.0
        b.arrays[key] = signs(b.arrays[key]) * scale
    model = b.calibrated("convolution")
    plan = planned(model)
    found = {node.name: totals(plan, node.name) for node in model.nodes if node.op in ("conv2d", "dense")}
    assert len(found) == 3 and not any("mul_plain" in counts for counts in found.values())
    x = b.inputs(3)
    np.testing.assert_allclose(run_clear(plan, x), forward(model, x), atol=1e-9)
