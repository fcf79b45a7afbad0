"""The prediction benchmark: what it measures, what it adds up, and that it goes on after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from secateur.together import GroupTimer


def record(network: str, backend: str, predicted: float, measured: float | None, **more: Any) -> dict[str, Any]:
    point = {"network": network, "backend": backend, "packing": "diagonal", "pattern": "grid", "sparsity": 0.5}
    if measured is None:
        return point | {"fits": True, "predicted_ms": predicted, "why": "no memory"}
    return point | {
        "fits": True, "predicted_ms": predicted, "measured_ms": measured, "counters_equal": True, "disturbed_runs": 1, **more,
    }  # fmt: skip


def test_totals_are_over_plans_and_the_worst_group_counts(script: Any) -> None:
    rows = [
        *(record("a", "tenseal", p, m) for p, m in ((10, 10), (21, 20), (30, 30))),
        *(record("b", "tenseal", p, m) for p, m in ((10, 10), (30, 20), (20, 30))),
        record("b", "pyfhel", 5, None),
    ]
    found = script("prediction").summary(rows)
    assert found["n"] == 6
    assert found["mape"] == pytest.approx((0.05 + 0.5 + 1 / 3) / 6)
    assert found["worst_group_spearman"] == pytest.approx(0.5)
    assert [g["n"] for g in found["groups"]] == [3, 3, 0]
    assert found["smallest_group"] == 0
    assert found["left_out"] == [
        {"network": "b", "packing": "diagonal", "backend": "pyfhel", "sparsity": 0.5, "why": "no memory"}
    ]
    assert found["disturbed_runs"] == 6 and found["counters_equal"] is True


def test_the_full_benchmark_is_as_large_as_it_has_to_be(script: Any) -> None:
    module = script("prediction")
    assert len(module.SPARSITIES) == len(set(module.SPARSITIES)) >= module.TARGETS["group_size"]
    plans = len(module.GROUPS) * len(module.BACKENDS) * len(module.SPARSITIES)
    assert plans >= module.TARGETS["n"]
    assert len({(g.network, g.packing) for g in module.GROUPS}) == len(module.GROUPS), "a group has one pattern"
    assert {g.packing.partition("-")[0] for g in module.GROUPS} == {"diagonal", "interleaved", "column"}
    for group in module.GROUPS:
        assert len(group.points(module.SPARSITIES)) == len(module.SPARSITIES)


def test_it_measures_and_goes_on(
    script: Any, said: Any, small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("prediction")
    monkeypatch.setattr(module, "random_reference", lambda name: small)
    arguments = ["--quick", "--runs", 1, "--log", tmp_path / "log.jsonl"]
    first = said(module, *arguments)
    assert first["n"] == 2 and first["counters_equal"] is True
    assert 0 <= first["mape"] < 3
    assert first["worst_group_spearman"] in (-1, 1)
    assert all(row["measured_ms"] > 0 and row["backend"] == "tenseal" for row in first["plans"])

    def measured_again(*_: object) -> None:
        raise AssertionError("it is in the log")

    monkeypatch.setattr(GroupTimer, "records", measured_again)
    assert said(module, *arguments)["plans"] == first["plans"]
    with pytest.raises(AssertionError, match="in the log"):
        said(module, *arguments, "--restart")
