"""Operation counts: within the limits, from the planner's own programs, beside the reference counts."""

from __future__ import annotations

from typing import Any

import pytest

from he_runtime import compile
from he_runtime.compile import lower
from he_runtime.cost import load_default
from he_runtime.plan.counts import leaf_totals
from model_prep.reference_models import random_reference


@pytest.mark.parametrize("name", ["lola", "mlp"])
def test_the_packing_of_a_network_is_within_the_limits(script: Any, name: str) -> None:
    reference = script("opcounts").REFERENCES[name]
    program, _ = lower(random_reference(reference.network), 16384, 1, load_default("tenseal"))
    found = leaf_totals(program.leaf_counts())
    assert found["rotate"] <= reference.rotation_limit
    assert found["mul_plain"] <= reference.product_limit


def test_limits_and_reference_counts_are_those_of_the_literature(script: Any) -> None:
    rows = script("opcounts").REFERENCES
    assert {k: (r.rotations, r.products, r.rotation_limit, r.product_limit) for k, r in rows.items()} == {
        "lola": (61, 250, 50, 157),
        "mlp": (80, 393, 58, 272),
        "lenet": (295, 2970, 285, 2970),
    }


def test_whole_plans_are_counted(
    script: Any, said: Any, small: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("opcounts")
    monkeypatch.setattr(module, "random_reference", lambda name: small)
    record = said(module, "--network", "mlp")
    planned = leaf_totals(compile(small, degrees=(16384,), table=load_default("tenseal")).counts)
    (row,) = record.values()
    assert (row["rotations"], row["products"]) == (planned["rotate"], planned["mul_plain"])
    assert (row["reference_rotations"], row["reference_products"]) == (80, 393)
    assert row["counted"] == row["slots_4096"]["counted"] == "plan"
    assert row["within_limits"] is True
    module.render(record)
    assert "Orion" in (out := capsys.readouterr().out) and "mlp" in out and "393" in out


def test_what_no_chain_of_a_ring_holds_is_counted_from_its_packing_or_not_at_all(script: Any) -> None:
    """Three levels at 2048 slots: there are no parameters, and no operation is invented."""
    found = script("opcounts").counts(random_reference("digits-mlp"), 2048)
    assert found["counted"] in ("packing", "nothing")
    assert (found["rotations"] is None) == (found["counted"] == "nothing")
    assert found["rotations"] != 0
