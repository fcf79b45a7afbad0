"""Magnitude pruning: exact counts, the gradual schedule, then a run under encryption; counters from the weights left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel
from he_runtime.reference import forward
from model_prep import Recipe, compress
from model_prep.data import Dataset, load
from model_prep.masks import Mask, magnitude_mask
from model_prep.methods import GlobalMagnitude, magnitude
from tests.model_prep.methods.one_feature import run, uses

SIZES = {"fc1": 64 * 64, "fc2": 64 * 64, "fc3": 640}
TOTAL = sum(SIZES.values())
DENSITY = 0.1


def recipe(network: str, *steps: dict[str, Any], epochs: int = 12) -> Recipe:
    teacher = {"epochs": epochs, "learning_rate": 3e-3}
    return Recipe.from_dict({"name": "magnitude", "network": network, "teacher": teacher, "steps": list(steps)})


TRAINING = {"epochs": 8, "learning_rate": 4e-3}
QUADRATICS = {"method": "quadratics", "training": TRAINING}
MAGNITUDE = {"method": "magnitude", "density": DENSITY, "training": TRAINING}
INTEGERS = {"method": "integers", "training": {"epochs": 1, "learning_rate": 2e-4}}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def few(digits: Dataset) -> Dataset:
    return digits.subset(128, 32)


@pytest.fixture(scope="module")
def model(digits: Dataset) -> CompressedModel:
    return compress(None, recipe("digits-mlp", QUADRATICS, MAGNITUDE, INTEGERS), digits, quiet=True)


def step(model: CompressedModel) -> dict[str, Any]:
    (found,) = (s for s in model.metadata["steps"] if s["method"] == "magnitude")
    return dict(found)


def layer_weights(model: CompressedModel) -> dict[str, np.ndarray]:
    return {n.name: model.arrays[n.arrays["weight"]] for n in model.nodes if "weight" in n.arrays}


def test_exactly_a_tenth_is_left_and_no_zero_came_back(model: CompressedModel) -> None:
    said, weights = step(model), layer_weights(model)
    assert {name: w.size for name, w in weights.items()} == SIZES
    assert said["nonzeros"] == round(DENSITY * TOTAL) and said["density"] == said["nonzeros"] / TOTAL
    left = sum(np.count_nonzero(w) for w in weights.values())
    assert 0.95 * said["nonzeros"] <= left <= said["nonzeros"]  # eight bits may round a kept one to zero
    assert said["flops_sparsity"] == pytest.approx(1 - said["density"])  # dense layers have one position each
    assert model.metadata["accuracy"]["final"] >= 0.92


def test_encrypted_it_decides_alike_and_costs_the_weights_that_are_left(
    model: CompressedModel, digits: Dataset
) -> None:
    images = digits.normalized("test")[:100].astype(np.float64)
    encrypted, clear = run(model, images), forward(model, images)
    assert (encrypted.logits.argmax(1) == clear.argmax(1)).sum() >= 99
    # The bound is six sigmas over all images; single ones have more.
    assert 0 < np.abs(encrypted.logits - clear).max() <= 1.5 * encrypted.plan.error_bound
    live, multiplied, squares = np.ones(64, dtype=bool), 0, 0
    for name, w in layer_weights(model).items():
        met = w * live  # a neuron that reads nothing is a constant, which costs nothing to read
        multiplied += uses(np.abs(met.astype(int)) > 1)  # by one step nothing is multiplied
        live = met.any(1)
        squares += int(live.sum()) if name != "fc3" else 0
    assert encrypted.totals["mul_plain"] == multiplied <= round(DENSITY * TOTAL)
    assert encrypted.totals["square"] == squares
    assert "rotate" not in encrypted.totals


def test_flops_sparsity_counts_a_kernel_at_every_position(few: Dataset) -> None:
    settings = {"method": "magnitude", "density": 0.25}
    found = compress(None, recipe("digits-cnn", settings, epochs=1), few, quiet=True)
    positions = {"conv1": 64, "conv2": 16, "fc": 1}
    weights = layer_weights(found)
    left, all_of_them = (
        sum(f(w) * positions[name] for name, w in weights.items()) for f in (np.count_nonzero, np.size)
    )
    assert step(found)["flops_sparsity"] == pytest.approx(1 - left / all_of_them)
    assert abs(step(found)["flops_sparsity"] - 0.75) > 0.01


@pytest.mark.parametrize(("ramp", "asked"), [(0.5, [0, 1 / 4, 1 / 2, 3 / 4, 1]), (0.0, [1])])
def test_sparsity_rises_along_the_cubic_schedule(
    ramp: float, asked: list[float], few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def watched(weights: Any, density: float, minimum: float) -> Mask:
        seen.append(density)
        return magnitude_mask(weights, density, minimum)

    monkeypatch.setattr(magnitude, "magnitude_mask", watched)
    settings = {**MAGNITUDE, "ramp": ramp, "training": {"epochs": 8}}
    compress(None, recipe("digits-mlp", settings, epochs=1), few, quiet=True)
    assert seen == pytest.approx([1 - (1 - DENSITY) * (1 - (1 - t) ** 3) for t in asked])


def test_the_minimum_saves_a_layer_that_the_ranking_would_empty() -> None:
    """At a density at which the smallest layer gets nothing from the ranking alone."""
    weights = {"large": np.linspace(1, 2, 5000), "small": np.full(40, 0.01)}
    assert magnitude_mask(weights, 0.01, 0.0).collapsed() == ["small"]
    kept = magnitude_mask(weights, 0.01, 0.0005)
    assert kept.nonzeros == 50 and kept.keep["small"].sum() == 2


@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    density=st.floats(0.01, 1.0),
    minimum=st.floats(0.0, 0.2),
    seed=st.integers(0, 99),
)
def test_every_layer_keeps_its_minimum_and_the_sum_is_exact(
    sizes: list[int], density: float, minimum: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weights = {str(i): rng.normal(size=n) * 10.0 ** rng.integers(-3, 3) for i, n in enumerate(sizes)}
    least = [min(int(minimum * sum(sizes)), n) for n in sizes]
    if sum(least) > round(density * sum(sizes)):
        with pytest.raises(ModelError, match="cannot prune"):
            magnitude_mask(weights, density, minimum)
        return
    mask = magnitude_mask(weights, density, minimum)
    assert mask.nonzeros == round(density * sum(sizes))
    for keep, values, count in zip(mask.keep.values(), weights.values(), least, strict=True):
        assert keep.sum() >= count
        assert not keep.any() or keep.all() or np.abs(values[keep]).min() >= np.abs(values[~keep]).max()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.05, "minimum": 0.02}, r"need 528 for the minimum .* try a density of 0\.0598 or"),
        ({"density": 1e-5, "minimum": 0.0}, r"got 0 of 8832 weights to keep, need 1 .* try a density of 0\.0002 or"),
    ],
)
def test_impossible_densities_are_refused_before_training(
    settings: dict[str, float], message: str, few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(magnitude, "gradual", None)
    with pytest.raises(ModelError, match=message):
        compress(None, recipe("digits-mlp", {"method": "magnitude", **settings}, epochs=1), few, quiet=True)


def test_the_nearest_density_is_met(few: Dataset) -> None:
    settings = {"method": "magnitude", "density": 0.0598, "minimum": 0.02}
    found = compress(None, recipe("digits-mlp", settings, epochs=1), few, quiet=True)
    assert all(np.count_nonzero(w) >= 176 for w in layer_weights(found).values())


def test_the_card_names_what_it_lowers() -> None:
    assert "products in column packing" in GlobalMagnitude.card.lowers
