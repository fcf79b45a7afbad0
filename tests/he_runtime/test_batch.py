"""Samples interleaved in the slots, from one to as many as there are slots, and neurons that pruning made constant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from he_runtime import Executor, Plan, compile, run_clear
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.lower.constants import fold_constants
from he_runtime.lower.stages import build_stages
from he_runtime.model import CompressedModel
from he_runtime.plan.counts import leaf_totals
from he_runtime.reference import forward
from he_runtime.ring import EvaluationKeys
from tests.he_runtime.networks import NETWORKS, Builder


def dead() -> Builder:
    """A residual network in which pruning emptied neurons: before a square, and on one or both sides of a sum."""
    b = Builder((12,))
    b.dense(12, 10)
    b.arrays[f"{b.last}.weight"][[1, 4, 7]] = 0
    kept = b.square((10,))
    b.dense(10, 10)
    b.arrays[f"{b.last}.weight"] *= 0.25
    b.arrays[f"{b.last}.weight"][[4, 5]] = 0
    inner = b.last
    b.add("add", (10,), inputs=(inner, kept))
    b.quadratic((10,))
    b.dense(10, 3)
    return b


CASES = {**NETWORKS, "dead": dead}


def planned(name: str, batch: int) -> tuple[Builder, CompressedModel, Plan]:
    builder = CASES[name]()
    model = builder.calibrated(name)
    largest = max(map(abs, model.ranges[model.output.node]))
    return builder, model, compile(model, degrees=(8192,), max_error=0.05 * largest, batch=batch)


@pytest.mark.parametrize("batch", [2, 64, 4096])
@pytest.mark.parametrize("name", ["pooled", "dead"])
def test_a_batch_computes_what_single_samples_do(name: str, batch: int, tmp_path: Path) -> None:
    builder, model, plan = planned(name, batch)
    inputs = builder.inputs(5)
    expected = forward(model, inputs)
    np.testing.assert_allclose(run_clear(plan, inputs), expected, atol=1e-9 * max(1.0, float(np.abs(expected).max())))
    restored = Plan.load(plan.save(tmp_path))
    assert restored.batch == batch and restored.digest == plan.digest


@pytest.mark.parametrize("backend", ["tenseal", pytest.param("pyfhel", marks=[pytest.mark.pyfhel])])
@pytest.mark.parametrize(("name", "batch"), [("pooled", 8), ("dead", 4096), ("mlp", 64)])
def test_an_encrypted_batch_is_within_the_predicted_error(name: str, batch: int, backend: str) -> None:
    builder, _, plan = planned(name, batch)
    secret, spec = SecretKey.generate(plan.params), plan.client_spec()
    executor = Executor(plan, backend)
    records = {r.element: r for r in secret.make_keys(plan.keys)}
    keys = executor.load_keys(EvaluationKeys(plan.params.digest, records))
    samples = builder.inputs(min(batch, 20), seed=3)
    encrypted = [secret.encrypt(slots, spec.input.level, spec.input.scale) for slots in spec.input.pack(samples)]
    answer = executor.run(encrypted, keys)
    assert executor.counters == plan.counts
    slots = np.stack([secret.decrypt(ciphertext) for ciphertext in answer])
    errors = spec.output.unpack(slots, len(samples)) - run_clear(plan, samples)
    assert float(np.abs(errors).max()) <= 1.5 * plan.error_bound
    assert 0.3 * plan.sigma <= float(np.sqrt(np.mean(errors**2))) <= 2 * plan.sigma


def test_one_feature_per_ciphertext_costs_its_non_zeros_and_no_rotation() -> None:
    _, model, plan = planned("dead", 4096)
    totals = leaf_totals(plan.counts)
    assert "rotate" not in totals and {r.element for r in plan.keys.requests} == {0}
    stages, constants = fold_constants(build_stages(model, 1))
    live = sum(s.map.matrix.nnz for s in stages if hasattr(s, "map"))
    quadratic = 10 - 1  # only neuron 4 is dead on both sides of the sum
    aligned = 10 - 3  # the squares, brought to the scale of the other branch
    assert totals["mul_plain"] == live + quadratic + aligned
    assert totals["square"] == 10 - 3 and totals["mul"] == quadratic
    assert [int(np.count_nonzero(~np.isnan(constants[s.name]))) for s in stages] == [3, 3, 2, 1, 1, 0]


def test_constant_neurons_leave_the_network_unchanged() -> None:
    builder, model, plan = planned("dead", 1)
    inputs = builder.inputs(4)
    np.testing.assert_allclose(run_clear(plan, inputs), forward(model, inputs), atol=1e-9)
