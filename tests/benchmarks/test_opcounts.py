"""Operation counts: within the limits, from the planner's own programs, beside the reference counts."""

from __future__ import annotations

from typing import Any

from he_runtime.compile import lower
from he_runtime.cost import load_default
from model_prep.reference_models import random_reference


def test_lola_stays_within_the_limits(script: Any, said: Any, capsys: Any) -> None:
    module = script("opcounts")
    record = said(module, "--network", "lola")
    (row,) = record.values()
    assert row["rotations"] <= row["rotation_limit"] == 50 < row["reference_rotations"]
    assert row["products"] <= row["product_limit"] == 157 < row["reference_products"]
    assert row["within_limits"] is True
    assert row["counted"] == row["slots_4096"]["counted"] == "plan"
    module.render(record)
    assert "Orion" in (out := capsys.readouterr().out) and "lola" in out and "250" in out


def test_the_packing_alone_of_the_mlp_is_within_the_limits(script: Any) -> None:
    reference = script("opcounts").REFERENCES["mlp"]
    program, _ = lower(random_reference(reference.network), 16384, 1, load_default("tenseal"))
    found = [x.diagonals for x in program.packing.packed.values()]
    assert sum(d.rotations for d in found) <= reference.rotation_limit
    assert sum(d.products for d in found) <= reference.product_limit


def test_limits_and_reference_counts_are_those_of_the_literature(script: Any) -> None:
    rows = script("opcounts").REFERENCES
    assert {k: (r.rotations, r.products) for k, r in rows.items()} == {
        "lola": (61, 250),
        "mlp": (80, 393),
        "lenet": (295, 2970),
    }


def test_what_no_chain_of_a_ring_holds_is_counted_from_its_packing_or_not_at_all(script: Any) -> None:
    """Three levels at 2048 slots: there are no parameters, and no operation is invented."""
    found = script("opcounts").counts(random_reference("digits-mlp"), 2048)
    assert found["counted"] in ("packing", "nothing")
    assert (found["rotations"] is None) == (found["counted"] == "nothing")
    assert found["rotations"] != 0
