"""`secateur compress` interrupted and called again: no finished step runs twice, and the model is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_runtime import CompressedModel
from model_prep.methods import DiagonalClasses
from secateur import compress_steps

PNG = b"\x89PNG\r\n"


def test_an_interrupted_compression_goes_on(
    made: Any, recipe: Any, ask: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: DiagonalClasses, stage: Any) -> None:
        raise KeyboardInterrupt

    unfinished = tmp_path / "models" / ".tiny-1.unfinished"
    with monkeypatch.context() as patch:
        patch.setattr(DiagonalClasses, "apply", killed)
        said = cli("compress", recipe)
    assert said.code != 0 and "step 2 of 3: diagonals" in said.err
    assert len(list(unfinished.glob("*.state"))) == 2
    said = cli("compress", recipe)
    assert said.code == 0
    assert "going on after step 1 of 3" in said.err and "step 1 of 3: quadratics" not in said.err
    assert not unfinished.exists()
    model = CompressedModel.load(tmp_path / "models" / "tiny" / "1")
    whole = CompressedModel.load(made.directory)
    assert set(model.arrays) == set(whole.arrays)
    assert all(np.array_equal(model.arrays[k], whole.arrays[k]) for k in whole.arrays)
    for word in ("0 teacher", "1 quadratics", "2 diagonals", "3 integers", "non-zeros", "predicted ms", "steps.png"):
        assert word in said.out


def test_restart_forgets_the_finished_steps(
    recipe: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: DiagonalClasses, stage: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DiagonalClasses, "apply", killed)
    cli("compress", recipe)
    again = cli("compress", recipe, "--restart")
    assert "going on" not in again.err and "step 1 of 3: quadratics" in again.err


def test_every_step_has_a_row(made: Any) -> None:
    record = made.record
    rows = record["steps"]
    assert [(row["step"], row["name"]) for row in rows] == [
        (0, "teacher"), (1, "quadratics"), (2, "diagonals"), (3, "integers"),
    ]  # fmt: skip
    assert record["resumed_after"] is None
    metadata = record["metadata"]
    for row in rows:
        assert row["accuracy"] == pytest.approx(metadata["accuracy"][row["name"]], abs=1e-6)
    for row in rows[1:]:
        assert row["logit_rms_change"] == pytest.approx(metadata["logit_rms_change"][row["name"]])
    assert rows[0]["predicted_ms"] is None and "activations" in rows[0]["why"]
    assert rows[0]["nonzeros"] == rows[1]["nonzeros"] > rows[2]["nonzeros"] == metadata["steps"][1]["nonzeros"]
    assert rows[1]["predicted_ms"] > rows[2]["predicted_ms"]
    assert Path(record["picture"]).read_bytes().startswith(PNG)


def test_without_two_prices_there_is_no_picture(tmp_path: Path) -> None:
    row = {"step": 0, "name": "teacher", "accuracy": 0.9, "predicted_ms": None}
    assert compress_steps.write_steps_png([row, {**row, "predicted_ms": 3.0}], "t", tmp_path / "x.png") is False
    assert not (tmp_path / "x.png").exists()
