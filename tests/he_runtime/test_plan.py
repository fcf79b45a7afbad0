"""The plan as an artifact: stored, digested, verified, exact in its keys."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from he_runtime import Plan, compile, run_clear
from he_runtime.client_spec import ClientSpec
from he_runtime.errors import DoesNotFit, PlanError, Reason
from he_runtime.model import CompressedModel, InputSpec, OutputSpec
from he_runtime.plan import Kind, verify
from tests.he_runtime.networks import Builder, cnn


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile(cnn().calibrated("cnn"), max_error=1.0)


def test_a_stored_plan_is_the_same_plan(plan: Plan, tmp_path: Path) -> None:
    loaded = Plan.load(plan.save(tmp_path / "plan"))
    assert loaded.digest == plan.digest
    assert loaded.listing() == plan.listing()
    assert loaded.keys == plan.keys and loaded.counts == plan.counts
    x = cnn().inputs(2)
    np.testing.assert_array_equal(run_clear(loaded, x), run_clear(plan, x))


@pytest.mark.parametrize("name", ["plan.json", "vectors.safetensors"])
def test_an_altered_plan_is_refused(plan: Plan, tmp_path: Path, name: str) -> None:
    path = plan.save(tmp_path / "plan")
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(bytes(data))
    with pytest.raises(PlanError) as caught:
        Plan.load(path)
    assert caught.value.reason is Reason.DIGEST_MISMATCH


def test_an_unknown_format_version_is_named(plan: Plan, tmp_path: Path) -> None:
    from he_runtime.plan import store

    path = plan.save(tmp_path / "plan")
    structure = json.loads((path / "plan.json").read_bytes())
    structure["version"] = 99
    text = json.dumps(structure).encode()
    (path / "plan.json").write_bytes(text)
    (path / "DIGEST").write_text(store._digest(text, (path / "vectors.safetensors").read_bytes()))
    with pytest.raises(PlanError, match="version 99") as caught:
        Plan.load(path)
    assert caught.value.reason is Reason.PLAN_VERSION_UNKNOWN


def test_verify_refuses_a_wrong_scale_level_or_operand(plan: Plan) -> None:
    rescaled = next(op.outputs[0] for op in plan.ops if op.kind is Kind.RESCALE)
    for change in ({"scale": plan.values[rescaled].scale * 1.001}, {"level": plan.values[rescaled].level + 1}):
        values = list(plan.values)
        values[rescaled] = replace(values[rescaled], **change)
        with pytest.raises(PlanError, match="cannot verify"):
            verify(replace(plan, values=tuple(values)))
    vectors = (np.zeros(1), *plan.vectors[1:])
    with pytest.raises(PlanError, match="all-zero"):
        verify(replace(plan, vectors=vectors))


def test_the_keys_are_exactly_what_the_ops_use(plan: Plan) -> None:
    steps = set()
    for op in plan.ops:
        if op.kind is Kind.ROTATE:
            steps.add(op.step)
        if op.kind is Kind.LINEAR_TRANSFORM:
            steps |= {a for _, a in op.babies} | {b for _, b in op.groups if b}
    expected = {plan.params.galois_element(s) for s in steps} | {0}
    assert {r.element for r in plan.keys.requests} == expected


def test_client_spec_round_trips_and_holds_no_weights(plan: Plan) -> None:
    spec = plan.client_spec("3")
    text = spec.to_json()
    parsed = ClientSpec.parse(text)
    assert parsed.to_json() == text and parsed.plan_digest == plan.digest
    assert len(text) < 40_000


def two_layers() -> Builder:
    b = Builder((64,))
    b.dense(64, 64)
    b.square((64,))
    b.dense(64, 64)
    return b


def test_pruned_diagonals_cost_nothing() -> None:
    dense, sparse = two_layers(), two_layers()
    weight = sparse.arrays["dense2.weight"]  # the first layer reads the staggered input: one operand in any case
    rows, columns = np.indices(weight.shape)
    weight[((columns - rows) % 64) % 8 != 0] = 0.0
    many, few = (compile(b.calibrated(), max_error=1.0).counts for b in (dense, sparse))
    assert (
        sum(n for (leaf, _), n in few.items() if leaf == "mul_plain")
        <= sum(n for (leaf, _), n in many.items() if leaf == "mul_plain") - 56
    )
    assert sum(n for (leaf, _), n in few.items() if leaf == "rotate") < sum(
        n for (leaf, _), n in many.items() if leaf == "rotate"
    )


def test_too_deep_a_model_is_refused_with_the_reason() -> None:
    b = Builder((8,))
    for _ in range(40):
        b.dense(8, 8)
        b.square((8,))
    b.dense(8, 2)
    with pytest.raises(DoesNotFit, match="levels"):
        compile(
            CompressedModel("deep", InputSpec("x", (8,)), OutputSpec(b.last), tuple(b.nodes), b.arrays), max_error=1.0
        )
