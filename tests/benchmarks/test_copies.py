"""Plans with and without pitched copies, measured in turn."""

from __future__ import annotations

from typing import Any

import pytest


def test_a_network_is_planned_both_ways(script: Any, said: Any, capsys: pytest.CaptureFixture[str]) -> None:
    module = script("copies")
    (row,) = said(module, "digits-mlp", "--backend", "tenseal", "--runs", "1")["rows"]
    assert row["layers"] and row["measured_ms"].keys() == {"plain", "copies"}
    assert row["products"]["copies"] < 0.2 * row["products"]["plain"]
    assert row["rotations"]["copies"] < row["rotations"]["plain"]
    module.main(["digits-mlp", "--backend", "tenseal", "--runs", "1"])
    assert "digits-mlp" in (out := capsys.readouterr().out) and "products" in out


def test_no_runs_are_refused(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script("copies").main(["--runs", "0"])
    assert "need at least one run" in capsys.readouterr().err
