"""Throughput of threads against that of processes, in a second or two: every number is there and nothing is left running."""

from __future__ import annotations

from typing import Any

import pytest

from he_runtime import kernel


@pytest.mark.skipif(not kernel.status().available, reason="the native kernel is not built")
def test_threads_and_processes_run_in_turn(script: Any, said: Any) -> None:
    found = said(script("threads"), "--network", "digits-cnn", "--threads", 1, "--rounds", 3, "--seconds", 0.1)
    assert found["network"] == "digits-cnn" and len(found["shares"]) == 3
    assert found["share"] == pytest.approx(sorted(found["shares"])[1], abs=1e-3)
    assert found["threads_per_s"] > 0 and found["processes_per_s"] > 0
    assert found["met"] is (found["share"] >= found["asked"])


@pytest.mark.parametrize("wrong", [["--threads", "0"], ["--rounds", "0"], ["--seconds", "0"], ["--network", "nope"]])
def test_a_wrong_option_is_refused(script: Any, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        script("threads").main(wrong)
    assert caught.value.code == 2
    assert "need" in capsys.readouterr().err or wrong[0] == "--network"
