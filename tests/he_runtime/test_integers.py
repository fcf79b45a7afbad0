"""Small integer weights with one feature per ciphertext: exact operands, fewer scale bits, fewer primes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from he_runtime import Executor, Plan, compile, price, run_clear
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.batching import plan_batch
from he_runtime.cost import load_default
from he_runtime.lower.integers import grid_step
from he_runtime.model import CompressedModel
from he_runtime.reference import calibrate, forward
from he_runtime.ring import EvaluationKeys
from tests.he_runtime.networks import Builder

BATCH = 4096  # one feature per ciphertext at N=8192


def network(bits: int | None) -> tuple[Builder, CompressedModel]:
    """16-12-8-4 with two squares; weights on a grid of that many bits, or real ones.

    Biases near one keep the squares from having tails, which no multiple of a standard deviation would bound.
    """
    b = Builder((16,))
    for inputs, outputs in ((16, 12), (12, 8), (8, 4)):
        name = b.dense(inputs, outputs)
        key = f"{name}.weight"
        b.arrays[key] *= 0.3
        b.arrays[f"{name}.bias"] += 1.0
        if bits:
            step = float(np.abs(b.arrays[key]).max()) / (2 ** (bits - 1) - 1)
            b.arrays[key] = np.rint(b.arrays[key] / step) * step
        if outputs > 4:
            b.square((outputs,))
    return b, b.calibrated("integers")


def planned(model: CompressedModel, batch: int = BATCH) -> Plan:
    largest = max(map(abs, model.ranges[model.output.node]))
    table = load_default("tenseal")  # its primes are longer than those of the native kernel
    return compile(model, degrees=(8192,), max_error=0.05 * largest, batch=batch, table=table)


@given(
    integers=st.lists(st.integers(-4096, 4096).filter(bool), min_size=1, max_size=40),
    step=st.floats(1e-4, 10.0),
)
def test_the_step_of_a_grid_is_found(integers: list[int], step: float) -> None:
    found = grid_step(np.array(integers) * step)
    assert found is not None
    assert found == pytest.approx(step * math.gcd(*integers), rel=1e-9)


def test_values_on_no_grid_have_no_step() -> None:
    rng = np.random.default_rng(0)
    assert grid_step(rng.normal(size=50)) is None
    assert grid_step(np.zeros(3)) is None
    assert grid_step(np.array([1.0, 4097.0])) is None


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_quantized_weights_buy_primes_and_time(bits: int) -> None:
    (_, real), (_, model) = network(None), network(bits)
    dear, cheap = planned(real), planned(model)
    assert len(cheap.params.primes) < len(dear.params.primes)
    assert cheap.params.log2_qp < dear.params.log2_qp
    table = load_default("tenseal")
    assert price(cheap, table).latency_ms < 0.8 * price(dear, table).latency_ms


def test_few_bits_fit_a_smaller_ring() -> None:
    _, model = network(3)
    largest = max(map(abs, model.ranges[model.output.node]))
    plan = compile(model, max_error=0.05 * largest, batch=2048)
    assert plan.params.degree == 4096


@pytest.mark.parametrize("bits", [3, 8])
def test_every_operand_is_an_exact_integer_and_the_result_that_of_the_model(bits: int) -> None:
    b, model = network(bits)
    plan = planned(model)
    products = {int(p) for op in plan.ops if op.cells is not None for p in op.cells[:, 4]}
    for index in products:
        plain = plan.plaintexts[index]
        (value,) = plan.vectors[plain.vector]
        assert value * plain.scale == pytest.approx(round(value * plain.scale), abs=1e-9)
        assert 1 <= abs(round(value * plain.scale)) < 2 ** (bits - 1)
    x = b.inputs(7)
    np.testing.assert_allclose(run_clear(plan, x), forward(model, x), atol=1e-9)


@pytest.mark.parametrize("backend", ["tenseal", pytest.param("pyfhel", marks=[pytest.mark.pyfhel])])
@pytest.mark.parametrize("bits", [3, 8])
def test_encrypted_integers_are_within_the_predicted_error(bits: int, backend: str) -> None:
    b, model = network(bits)
    plan = planned(model)
    spec, secret = plan.client_spec(), SecretKey.generate(plan.params)
    executor = Executor(plan, backend)
    records = {r.element: r for r in secret.make_keys(plan.keys)}
    keys = executor.load_keys(EvaluationKeys(plan.params.digest, records))
    x = b.inputs(64)
    sent = [secret.encrypt(v, spec.input.level, spec.input.scale) for v in spec.input.pack(x)]
    received = np.stack([secret.decrypt(c) for c in executor.run(sent, keys)])
    error = spec.output.unpack(received, len(x)) - run_clear(plan, x)
    assert float(np.abs(error).max()) <= plan.error_bound
    assert 0.4 < float(np.sqrt((error**2).mean())) / plan.sigma < 1.3
    assert executor.counters == plan.counts


def test_a_throughput_plan_takes_the_smaller_ring_where_integers_allow_it() -> None:
    _, model = network(3)
    largest = max(map(abs, model.ranges[model.output.node]))
    found = plan_batch(model, 2048, max_error=0.05 * largest)
    assert any(o.batch == 2048 and o.degree == 4096 and o.planned for o in found.options)


def test_real_weights_and_sums_plan_as_before() -> None:
    b = Builder((16,))
    kept = b.dense(16, 16)
    b.square((16,))
    b.add("add", (16,), inputs=(b.last, kept))
    b.arrays["dense0.weight"] = np.sign(b.arrays["dense0.weight"])
    model = calibrate(b.calibrated("sum"), b.inputs(64))
    plan = planned(model)
    x = b.inputs(3)
    np.testing.assert_allclose(run_clear(plan, x), forward(model, x), atol=1e-8)
