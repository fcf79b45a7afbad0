"""Progressive pruning: ever sparser exact masks whose zeros stay, and as many products as weights are left."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from he_runtime import compile
from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel
from he_runtime.reference import forward
from model_prep import Recipe, compress
from model_prep.cores.masked import retrain
from model_prep.cores.session import weights
from model_prep.data import Dataset, load
from model_prep.masks import Mask
from model_prep.methods import ProgressiveAdmm
from model_prep.stage import Stage
from tests.model_prep.methods.column_packing import counted, planned, run_encrypted

DENSITIES = [0.3, 0.1]
TOTAL = 64 * 64 + 64 * 64 + 640
ADMM = {"rounds": 4, "rho": 0.1, "growth": 2.0, "training": {"epochs": 2, "learning_rate": 5e-3}}
ONCE = {"admm": {**ADMM, "rounds": 1, "training": {"epochs": 1}}, "training": {"epochs": 1}}


def recipe(network: str, *steps: dict[str, Any], epochs: int = 12) -> Recipe:
    teacher = {"epochs": epochs, "learning_rate": 4e-3}
    return Recipe.from_dict({"name": "progressive", "network": network, "teacher": teacher, "steps": list(steps)})


QUADRATICS = {"method": "quadratics", "training": {"epochs": 6, "learning_rate": 2e-3}}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def few(digits: Dataset) -> Dataset:
    return digits.subset(128, 32)


@pytest.fixture(scope="module")
def model(digits: Dataset) -> CompressedModel:
    retraining = {"epochs": 5, "learning_rate": 4e-3}
    step = {"method": "progressive", "densities": DENSITIES, "admm": ADMM, "training": retraining}
    return compress(None, recipe("digits-mlp", QUADRATICS, step), digits, quiet=True)


def step(model: CompressedModel) -> dict[str, Any]:
    return dict(next(s for s in model.metadata["steps"] if s["method"] == "progressive"))


def layer_weights(model: CompressedModel) -> dict[str, np.ndarray]:
    return {n.name: np.asarray(model.arrays[n.arrays["weight"]]) for n in model.nodes if "weight" in n.arrays}


def test_the_density_is_met_exactly_and_residuals_fall(model: CompressedModel) -> None:
    left = sum(int(np.count_nonzero(w)) for w in layer_weights(model).values())
    assert left == step(model)["nonzeros"] == round(DENSITIES[-1] * TOTAL)
    residuals = step(model)["residuals"]
    assert len(residuals) == len(DENSITIES) and all(r[-1] < r[0] for r in residuals)
    assert model.metadata["accuracy"]["final"] >= 0.9


def test_a_zero_of_an_earlier_step_is_never_revived(few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Mask] = []

    def watched(stage: Stage, mask: Mask, *args: Any, **options: Any) -> None:
        seen.append(mask)
        retrain(stage, mask, *args, **options)
        for key, values in weights(stage.net).items():
            assert not values[~mask.keep[key]].any()

    monkeypatch.setattr("model_prep.methods.progressive.retrain", watched)
    compress(
        None,
        recipe("digits-mlp", {"method": "progressive", "densities": [0.5, 0.2, 0.05], **ONCE}, epochs=1),
        few,
        quiet=True,
    )
    assert [mask.nonzeros for mask in seen] == [round(d * TOTAL) for d in (0.5, 0.2, 0.05)]
    for before, after in pairwise(seen):
        assert all(not (after.keep[key] & ~before.keep[key]).any() for key in after.keep)


def test_shares_of_layers_are_met_exactly(few: Dataset) -> None:
    layers = {"fc1": 0.25, "fc2": 0.05, "fc3": 0.5}
    settings = {"method": "progressive", "densities": DENSITIES, "layers": layers, **ONCE}
    found = layer_weights(compress(None, recipe("digits-mlp", settings, epochs=1), few, quiet=True))
    assert {n: int(np.count_nonzero(w)) for n, w in found.items()} == {
        n: round(layers[n] * found[n].size) for n in found
    }


def test_encrypted_it_decides_alike_and_costs_the_weights_that_are_left(
    model: CompressedModel, digits: Dataset
) -> None:
    x = digits.normalized("test")[:100]
    encrypted = run_encrypted(model, x)
    assert planned(encrypted.plan) == counted(model)
    expected = forward(model, x.astype(np.float64))
    assert (encrypted.outputs.argmax(1) == expected.argmax(1)).sum() >= 99
    assert encrypted.error <= 1.5 * encrypted.plan.error_bound


def test_a_convolution_costs_its_weights_at_every_position(few: Dataset) -> None:
    settings = {"method": "progressive", "densities": [0.4, 0.2], **ONCE}
    found = compress(None, recipe("digits-cnn", settings, epochs=1), few, quiet=True)
    plan = compile(found, degrees=(8192, 16384), batch=4096, max_error=1e3)
    assert planned(plan) == counted(found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"densities": []}, "densities in"),
        ({"densities": [0.1, 0.3]}, "that fall"),
        ({"densities": [1.0]}, "densities in"),
        ({"layers": {"fc1": 0.0}}, r"need layers in \(0, 1\]"),
        ({"admm": {"hard": False}}, "hard = true"),
        ({"minimum": 1.0}, "minimum in"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        recipe("digits-mlp", {"method": "progressive", **settings})


def test_what_the_network_does_not_allow_is_refused_with_the_nearest_that_it_does(few: Dataset) -> None:
    for method, message in (
        (ProgressiveAdmm((0.5, 0.001), minimum=0.01), r"need 264 .* try a density of 0\.0299"),
        (ProgressiveAdmm((0.1,), layers={"fc1": 0.1}), r"each of \['fc1', 'fc2', 'fc3'\]"),
    ):
        with pytest.raises(ModelError, match=message):
            compress(None, Recipe("x", "digits-mlp", steps=(method,)), few, quiet=True)
