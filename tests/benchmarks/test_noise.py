"""The noise benchmark: what it measures, that a wrong prediction is seen, and that it goes on after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_runtime import Plan, compile
from he_runtime.errors import InputError
from secateur.local import Local


@pytest.fixture
def bench(script: Any, small: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark with one small network in place of all."""
    module = script("noise")
    monkeypatch.setattr(module, "random_reference", lambda name: small)
    # The images of the calibration: their typical margin is the one that the plan has its budget from, and may use up.
    samples = small.mean_square("samples")
    monkeypatch.setattr(module, "QUICK_SIZE", (len(samples), len(samples) // 2))
    monkeypatch.setattr(module, "inputs", lambda name, count: samples[:count])
    return module


def test_it_measures_under_fresh_keys_and_goes_on(
    bench: Any, said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    keys: list[Any] = []
    fresh = Local.fresh_keys

    def counted(self: Local) -> None:
        fresh(self)
        keys.append(self._secret)

    monkeypatch.setattr(Local, "fresh_keys", counted)
    arguments = ["--quick", "--log", tmp_path / "log.jsonl"]
    record = said(bench, *arguments)
    (row,) = record["networks"]
    assert record["ok"] is row["ok"] is True
    assert (row["network"], row["images"], row["keys"]) == ("digits-mlp", 64, 2)
    assert len(keys) == len(set(map(id, keys))) == 2
    assert row["rms_error"] <= row["largest_error"] <= row["error_bound"]
    assert row["error_bound"] >= 6 * row["sigma"]
    assert row["rms_over_sigma"] == pytest.approx(row["rms_error"] / row["sigma"])
    assert row["bound_over_margin"] == pytest.approx(row["error_bound"] / row["median_margin"])
    assert 58 <= row["argmax_matches"] <= 64

    def evaluated_again(*_: object) -> None:
        raise AssertionError("it is in the log")

    monkeypatch.setattr(Local, "evaluate", evaluated_again)
    assert said(bench, *arguments) == record
    with pytest.raises(AssertionError, match="in the log"):
        said(bench, *arguments, "--restart")
    bench.render(record)
    assert capsys.readouterr().out.splitlines()[-1].startswith("ok   digits-mlp")


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_a_wrong_sigma_is_seen(
    bench: Any, said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    def mistaken(model: Any, **options: Any) -> Plan:
        plan = compile(model, **options)
        return replace(plan, sigma=plan.sigma * factor, error_bound=plan.error_bound * factor)

    monkeypatch.setattr(bench, "compile", mistaken)
    record = said(bench, "--quick", "--log", tmp_path / "log.jsonl")
    assert record["ok"] is record["networks"][0]["ok"] is False
    assert not 0.5 <= record["networks"][0]["rms_over_sigma"] <= 1.1


def key(**changes: Any) -> dict[str, Any]:
    """What the log holds of one key: ten outputs of an RMS error of one sigma, within every limit."""
    plain = {"plan": "a", "sigma": 1.0, "error_bound": 6.0, "N": 4096, "log2_qp": 100.0, "images": 1, "outputs": 10}
    return plain | {"squared_error": 10.0, "largest_error": 3.0, "margins": [24.0], "argmax_matches": 1} | changes


@pytest.mark.parametrize(
    ("changes", "ok"),
    [
        ({}, True),
        ({"squared_error": 10 * 1.09**2}, True),
        ({"squared_error": 10 * 1.11**2}, False),
        ({"squared_error": 10 * 0.51**2}, True),
        ({"squared_error": 10 * 0.49**2}, False),
        ({"largest_error": 6.0}, True),
        ({"largest_error": 6.1}, False),
        ({"margins": [23.9]}, False),
    ],
)
def test_every_limit_is_held(script: Any, changes: dict[str, Any], ok: bool) -> None:
    assert script("noise").summary("net", [key(**changes)])["ok"] is ok


def test_keys_add_up(script: Any) -> None:
    parts = [key(images=2, margins=[30.0, 50.0]), key(squared_error=2.0, largest_error=5.0, argmax_matches=0)]
    found = script("noise").summary("net", parts)
    assert found["rms_over_sigma"] == pytest.approx((12 / 20) ** 0.5)
    assert (found["images"], found["keys"], found["argmax_matches"]) == (3, 2, 1)
    assert (found["largest_error"], found["median_margin"]) == (5.0, 30.0)


def test_errors_are_compared_per_output(script: Any) -> None:
    clear = np.array([[1.0, 3.0, 2.0], [0.0, 0.5, 0.1]])
    found = script("noise").comparison(clear + np.array([[0.0, 0.1, -0.2], [0.6, 0.0, 0.0]]), clear)
    assert found["squared_error"] == pytest.approx(0.01 + 0.04 + 0.36)
    assert found["largest_error"] == pytest.approx(0.6)
    assert found["margins"] == pytest.approx([1.0, 0.4])
    assert (found["images"], found["outputs"], found["argmax_matches"]) == (2, 6, 1)


def test_images_of_another_plan_are_not_added(
    bench: Any, said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--log", tmp_path / "log.jsonl", "--network", "digits-mlp", "--images", 2, "--images-per-key", 1]
    said(bench, *arguments)
    lines = (tmp_path / "log.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "log.jsonl").write_text("".join(lines[:-1]))
    monkeypatch.setattr(bench, "compile", lambda model, **options: compile(model, degrees=(16384,), **options))
    with pytest.raises(InputError, match="another plan"):
        said(bench, *arguments)


def test_all_reference_networks_are_run_on_digits_of_their_size(script: Any) -> None:
    module = script("noise")
    assert module.inputs("digits-mlp", 3).shape == (3, 1, 8, 8)
    assert module.inputs("mnist-lenet", 3).shape == (3, 1, 28, 28)
    assert module.TARGETS == {"rms_over_sigma": [0.5, 1.1], "bound_over_margin": 0.25}
