"""Several primes per level: errors so small that released decryptions keep useful precision, predicted and kept."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from client.release import flooding
from he_runtime import CompressedModel, Executor, Plan, compile, run_clear
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.cost import load_default
from he_runtime.errors import DoesNotFit, ParameterError
from he_runtime.kernel import status
from he_runtime.plan import Kind
from he_runtime.reference import forward
from he_runtime.ring import EvaluationKeys
from tests.he_runtime.networks import NETWORKS, Builder

on_native = pytest.param(
    3, "native", marks=pytest.mark.skipif(not status().available, reason="the kernel is not built")
)


def _small() -> Builder:
    b = Builder((32,))
    b.dense(32, 16)
    b.quadratic((16,))
    b.dense(16, 8)
    return b


@cache
def _model() -> CompressedModel:
    return _small().calibrated("net")


@cache
def _plan(width: int, backend: str) -> Plan:
    return compile(_model(), degrees=(16384,), max_error=1.0, primes_per_level=width, table=load_default(backend))


@pytest.mark.parametrize(("width", "backend"), [(2, "tenseal"), on_native])
def test_encrypted_runs_stay_within_the_tiny_error(width: int, backend: str) -> None:
    plan = _plan(width, backend)
    assert plan.error_bound < (1e-4, 1e-8)[width - 2]
    key, spec = SecretKey.generate(plan.params), plan.client_spec()
    executor = Executor(plan, backend)
    keys = executor.load_keys(EvaluationKeys(plan.params.digest, {r.element: r for r in key.make_keys(plan.keys)}))
    inputs, worst = _small().inputs(2), 0.0
    for x, expected in zip(inputs, forward(_model(), inputs), strict=True):
        sent = [key.encrypt(slots, spec.input.level, spec.input.scale) for slots in spec.input.pack(x[None])]
        reply = executor.run(sent, keys)
        assert executor.counters == plan.counts_on(backend)
        got = spec.output.unpack(np.stack([key.decrypt(ct) for ct in reply]))[0]
        worst = max(worst, float(np.abs(got - expected).max()))
    assert 0 < worst <= 1.5 * plan.error_bound


def test_each_rescale_takes_that_many_primes() -> None:
    single = compile(_model(), degrees=(16384,), max_error=1.0, table=load_default("tenseal"))
    for width in (2, 3):
        plan = _plan(width, "tenseal")
        rescales = [sum(op.kind is Kind.RESCALE for op in p.ops) for p in (single, plan)]
        assert rescales[1] == width * rescales[0]
        assert len(plan.params.primes) == width * len(single.params.primes)
        assert plan.values[plan.outputs[0].values[0]].level == width - 1


def _branch() -> Builder:
    b = Builder((16,))
    kept = b.dense(16, 16)
    b.square((16,))
    inner = b.dense(16, 16)
    b.add("add", (16,), inputs=(inner, kept))
    left = b.last
    right = b.dense(16, 16)
    b.add("multiply", (16,), inputs=(left, right))
    b.dense(16, 4)
    return b


@pytest.mark.parametrize("builder", [NETWORKS["pooled"](), _branch()], ids=["convolutions", "branches"])
def test_other_networks_have_it_too(builder: Builder) -> None:
    model = builder.calibrated("net")
    plan = compile(model, degrees=(32768,), max_error=1.0, primes_per_level=2, table=load_default("tenseal"))
    assert plan.error_bound < 1e-3
    x = builder.inputs(2)
    np.testing.assert_allclose(run_clear(plan, x), forward(model, x), atol=1e-9)


def test_what_it_is_for() -> None:
    """A release keeps bits after the point that the plan of one prime per level is far from."""
    bits = {w: flooding(_plan(w, "tenseal").client_spec()).best_bits for w in (2, 3)}
    single = compile(_model(), degrees=(16384,), max_error=1.0, table=load_default("tenseal"))
    assert flooding(single.client_spec()).best_bits < bits[2] - 4 < bits[3] - 8
    assert bits[3] >= 6


def test_refusals() -> None:
    with pytest.raises(ParameterError, match="primes per level"):
        compile(_model(), primes_per_level=4)
    b = Builder((8,))
    b.dense(8, 8)
    b.add("polynomial", (8,), {"basis": "chebyshev", "low": -4.0, "high": 4.0}, coefficients=[0.1, 0.5, 0.2, 0.1])
    b.dense(8, 4)
    with pytest.raises(DoesNotFit, match="several primes per level"):
        compile(b.calibrated("net"), primes_per_level=2)
