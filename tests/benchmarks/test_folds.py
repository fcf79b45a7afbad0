"""The benchmark of the accuracy limits on a small recipe: runs of all folds and seeds, limits kept and missed, points kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_prep.data import digits_folds

RECIPE = """
name = "small"
network = "digits-mlp"
train_limit = 300
[teacher]
epochs = 3
learning_rate = 5e-3
[[steps]]
method = "magnitude"
density = 0.5
[steps.training]
epochs = 1
[[steps]]
method = "integers"
bits = 8
"""


@pytest.fixture
def small(script: Any, tmp_path: Path) -> Any:
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    module = script("folds")
    gate = module.Gate
    module.GATES = {
        "loose": gate(str(path), "magnitude", points=50.0, fewer=1.9),
        "strict": gate(str(path), "magnitude", least=1.0),
        "sparse": gate(str(path), "magnitude", points=50.0, fewer=10.0),
        "signs": gate(str(path), "magnitude", points=50.0, no_products=True),
    }
    return module


def test_limits_are_kept_or_missed_over_folds_and_seeds(
    small: Any, said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small, "products", lambda model: 7)  # planning 4096 queries takes longer than the training
    arguments = ["--folds", "2", "--seed", "0", "--seed", "1", "--log", str(tmp_path / "log.jsonl")]
    rows = {row["gate"]: row for row in said(small, *arguments)["gates"]}
    assert {name: row["met"] for name, row in rows.items()} == {
        "loose": True, "strict": False, "sparse": False, "signs": False,
    }  # fmt: skip
    row = rows["loose"]
    assert row["runs"] == 4 and row["data"] == [f"digits[fold {i}/5]" for i in (1, 2)]
    assert row["points_lost"] == pytest.approx(100 * (row["dense"] - row["compressed"]))
    assert row["worst_run"] >= row["points_lost"] and row["fewer_weights"] == pytest.approx(2, rel=0.01)
    assert rows["signs"]["products"] == 7

    monkeypatch.setattr(small, "made", lambda *_: pytest.fail("trained again"))
    assert said(small, *arguments)["gates"] == list(rows.values())


def test_gates_train_no_further_than_the_step_that_counts(small: Any) -> None:
    (recipe, data), *rest = small.trainings(small.GATES["loose"], 2, (3,))
    assert [step.card.name for step in recipe.steps] == ["magnitude"] and recipe.seed == 3
    assert data.name == digits_folds(5)[0].name and len(rest) == 1


def test_unknown_gates_and_folds_are_refused(small: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["nothing"], ["loose", "--folds", "6"]):
        with pytest.raises(SystemExit):
            small.main(arguments)
        assert "loose, strict, sparse, signs" in capsys.readouterr().err
