"""The contract of the reference networks, with random weights: answers, error bounds and counters on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from he_runtime import Executor, Plan, compile, run_clear
from he_runtime.backends import BACKENDS
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.reference import forward
from he_runtime.ring import EvaluationKeys
from model_prep.data import load
from model_prep.networks import NETWORKS
from model_prep.reference_models import random_reference

IMAGES = 3


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def case(request: pytest.FixtureRequest) -> tuple[Plan, Any, Any, Any]:
    """(plan, inputs (IMAGES, *shape), the graph's outputs, the secret key)."""
    model = random_reference(request.param)
    data = load("digits" if NETWORKS[request.param].dataset == "digits" else "digits-upscaled")
    inputs = data.normalized("test")[:IMAGES].astype(np.float64)
    plan = compile(model)
    return plan, inputs, forward(model, inputs), SecretKey.generate(plan.params)


def test_the_plan_computes_the_network(case: tuple[Plan, Any, Any, Any]) -> None:
    plan, inputs, expected, _ = case
    largest = float(np.abs(expected).max())
    np.testing.assert_allclose(run_clear(plan, inputs), expected, atol=1e-9 * max(1.0, largest))


@pytest.mark.parametrize(
    "backend", [pytest.param(n, marks=[pytest.mark.pyfhel] if n == "pyfhel" else []) for n in sorted(BACKENDS)]
)
def test_a_backend_runs_the_network(case: tuple[Plan, Any, Any, Any], backend: str) -> None:
    plan, inputs, _, secret = case
    if backend == "pyfhel" and plan.params.degree > 8192:
        pytest.skip("Pyfhel runs SEAL as TenSEAL does; the smaller networks show that")
    executor = Executor(plan, backend)
    records = {r.element: r for r in secret.make_keys(plan.keys)}
    keys = executor.load_keys(EvaluationKeys(plan.params.digest, records))
    spec = plan.client_spec()
    for sample, clear in zip(inputs, run_clear(plan, inputs), strict=True):
        encrypted = [
            secret.encrypt(slots, spec.input.level, spec.input.scale) for slots in spec.input.pack(sample[None])
        ]
        answer = executor.run(encrypted, keys)
        assert executor.counters == plan.counts_on(backend)
        logits = spec.output.unpack(np.stack([secret.decrypt(ct) for ct in answer]))[0]
        assert float(np.abs(logits - clear).max()) <= plan.error_bound
