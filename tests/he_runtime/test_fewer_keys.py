"""A budget for the evaluation keys: steps without a key go by way of two others, at the price of rotations."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from he_runtime import Executor, Plan, compile, price, run_clear
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.cost import load_default
from he_runtime.errors import DoesNotFit, PlanError
from he_runtime.model import CompressedModel
from he_runtime.plan import verify
from he_runtime.plan.counts import leaf_totals
from he_runtime.ring import EvaluationKeys
from tests.he_runtime.networks import Builder, mlp


@pytest.fixture(scope="module")
def network() -> tuple[Builder, CompressedModel, Plan, Plan]:
    b = mlp()
    model = b.calibrated("mlp")
    budget = 0.05 * max(map(abs, model.ranges[model.output.node]))
    whole = compile(model, degrees=(8192,), max_error=budget, pitched=False)
    bytes_ = price(whole, load_default("tenseal")).key_bytes
    few = compile(model, degrees=(8192,), max_error=budget, pitched=False, max_key_bytes=bytes_ * 2 // 3)
    return b, model, whole, few


def test_keys_fit_the_budget_and_each_detour_costs_its_uses(
    network: tuple[Builder, CompressedModel, Plan, Plan],
) -> None:
    _, _, whole, few = network
    table = load_default("tenseal")
    assert price(few, table).key_bytes <= price(whole, table).key_bytes * 2 // 3
    assert len(few.keys.requests) == len(whole.keys.requests) - len(few.detours)
    uses = Counter(
        step
        for op in whole.ops
        for step in ([op.step] if op.cells is None else [s for _, s in (*op.babies, *op.groups)])
        if step
    )
    extra = sum(uses[step] for step in few.detours)
    assert leaf_totals(few.counts)["rotate"] == leaf_totals(whole.counts)["rotate"] + extra
    assert whole.sigma <= few.sigma < 1.5 * whole.sigma
    assert not whole.detours


def test_the_result_is_the_same_in_the_clear_and_under_encryption(
    network: tuple[Builder, CompressedModel, Plan, Plan], tmp_path: Path
) -> None:
    b, _, whole, few = network
    few = Plan.load(few.save(tmp_path))
    x = b.inputs(3)
    expected = run_clear(whole, x)
    np.testing.assert_allclose(run_clear(few, x), expected, atol=1e-9)
    spec, secret = few.client_spec(), SecretKey.generate(few.params)
    executor = Executor(few, "tenseal")
    records = {r.element: r for r in secret.make_keys(few.keys)}
    keys = executor.load_keys(EvaluationKeys(few.params.digest, records))
    for sample, clear in zip(x, expected, strict=True):
        sent = [secret.encrypt(v, spec.input.level, spec.input.scale) for v in spec.input.pack(sample[None])]
        received = np.stack([secret.decrypt(c) for c in executor.run(sent, keys)])
        assert float(np.abs(spec.output.unpack(received)[0] - clear).max()) <= few.error_bound
        assert executor.counters == few.counts


def test_an_impossible_budget_is_refused_with_what_is_reached(
    network: tuple[Builder, CompressedModel, Plan, Plan],
) -> None:
    with pytest.raises(
        DoesNotFit, match=r"at N=8192 in 1,000 bytes: got [\d,]+ .*; try a budget of ([\d,]+)"
    ) as refused:
        compile(network[1], degrees=(8192, 16384), max_error=1.0, max_key_bytes=1000)
    least = int(str(refused.value).rpartition(" ")[2].replace(",", ""))
    assert compile(network[1], degrees=(8192,), max_error=1.0, max_key_bytes=least).detours


def test_a_detour_that_leads_elsewhere_is_refused(network: tuple[Builder, CompressedModel, Plan, Plan]) -> None:
    few = network[3]
    step, (a, b) = next(iter(few.detours.items()))
    with pytest.raises(PlanError, match="no detour"):
        verify(replace(few, detours={step: (a, b + 1)}))
    with pytest.raises(PlanError, match="no detour"):
        verify(replace(few, detours={step: (a, b + few.params.slots)}))
