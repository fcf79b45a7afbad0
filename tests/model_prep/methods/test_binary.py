"""Levels by ADMM and growing shares: signs exactly, and nothing but additions for them under encryption."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from he_runtime import Plan, compile
from he_runtime.cost import load_default
from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel
from he_runtime.plan.counts import layer_counts, leaf_totals
from he_runtime.reference import forward
from model_prep import Recipe, compress
from model_prep.data import Dataset, load
from tests.model_prep.methods.column_packing import BATCH, counted
from tests.model_prep.methods.encrypted import encrypted_outputs

SHORT: dict[str, Any] = {
    "admm": {"rounds": 3, "rho": 0.1, "growth": 2.0, "hard": False, "training": {"epochs": 2, "learning_rate": 1e-2}},
    "settle": {"shares": [0.4, 0.7, 1.0], "training": {"epochs": 2, "learning_rate": 1e-2}},
    "finish": {"epochs": 4, "learning_rate": 1e-2},
}


def recipe(network: str, *steps: dict[str, Any], epochs: int = 10) -> Recipe:
    teacher = {"epochs": epochs, "learning_rate": 5e-3}
    return Recipe.from_dict({"name": "levels", "network": network, "teacher": teacher, "steps": list(steps)})


def quadratics(epochs: int) -> dict[str, Any]:
    return {"method": "quadratics", "training": {"epochs": epochs, "learning_rate": 2e-3}}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def few(digits: Dataset) -> Dataset:
    return digits.subset(256, 32)


@pytest.fixture(scope="module")
def binary(digits: Dataset) -> CompressedModel:
    steps = [quadratics(4), {"method": "levels", "ladder": [1], **SHORT}]
    return compress(None, recipe("digits-cnn", *steps), digits, quiet=True)


def layer_weights(model: CompressedModel) -> dict[str, np.ndarray]:
    return {n.name: np.asarray(model.arrays[n.arrays["weight"]]) for n in model.nodes if "weight" in n.arrays}


def step(model: CompressedModel) -> dict[str, Any]:
    return dict(next(s for s in model.metadata["steps"] if s["method"] == "levels"))


def planned(model: CompressedModel, **options: Any) -> Plan:
    return compile(model, table=load_default("tenseal"), degrees=(8192, 16384), batch=BATCH, **options)


def test_every_weight_is_a_sign(binary: CompressedModel) -> None:
    for name, weight in layer_weights(binary).items():
        assert weight.dtype == np.int8 and set(np.unique(weight)) == {-1, 1}, name
    residuals = step(binary)["residuals"][-1]
    assert residuals[-1] < residuals[0]
    assert set(step(binary)["levels"].values()) == {2}


def test_encrypted_it_decides_alike_without_a_product_by_a_plaintext(binary: CompressedModel, digits: Dataset) -> None:
    plan = planned(binary)
    x = digits.normalized("test")[:100].astype(np.float64)
    found = encrypted_outputs(plan, x)
    clear = forward(binary, x)
    assert (found.argmax(1) == clear.argmax(1)).sum() >= 99
    assert float(np.abs(found - clear).max()) <= 1.5 * plan.error_bound
    layers = {name: leaf_totals(counts) for name, counts in layer_counts(plan).items()}
    terms = counted(binary)  # non-zeros times positions
    for node in binary.nodes:
        if node.op in ("conv2d", "dense"):
            counts, outputs = layers[node.name], int(np.prod(node.shape))
            assert "rescale" not in counts
            assert sum(counts.get(leaf, 0) for leaf in ("add", "sub")) == terms[node.name] - outputs
    assert not any("mul_plain" in counts for counts in layers.values())


def test_signs_need_fewer_primes_than_real_weights(binary: CompressedModel) -> None:
    rng = np.random.default_rng(0)
    arrays = {k: v * rng.uniform(0.98, 1.02, v.shape) if k.endswith("weight") else v for k, v in binary.arrays.items()}
    real, signs = planned(binary.with_(arrays=arrays)), planned(binary)
    assert (signs.params.degree, len(signs.params.primes)) < (real.params.degree, len(real.params.primes))


@pytest.mark.parametrize(("bits", "levels"), [(2, 3), (1, 2), (4, 15)])
def test_weights_leave_as_integers_of_one_scale(bits: int, levels: int, few: Dataset) -> None:
    short = {k: {**v, "training": {"epochs": 1}} for k, v in SHORT.items() if k != "finish"} | {"finish": {"epochs": 1}}
    steps = [quadratics(1), {"method": "levels", "ladder": [8, bits], **short}]
    model = compress(None, recipe("digits-mlp", *steps, epochs=2), few, quiet=True)
    for name, integers in layer_weights(model).items():
        assert integers.dtype == np.int8 and len(np.unique(integers)) <= levels, name
        if bits <= 2:
            assert np.abs(integers).max() == 1
    assert len(step(model)["residuals"]) == 2
    plan = planned(model)
    products = [leaf_totals(c).get("mul_plain", 0) for c in layer_counts(plan).values()]
    assert bits > 2 or not any(products)


def test_coefficients_of_their_own_leave_every_row_a_scale_of_its_own(few: Dataset) -> None:
    short = {k: {**v, "training": {"epochs": 1}} for k, v in SHORT.items() if k != "finish"} | {"finish": {"epochs": 1}}
    steps = [quadratics(1), {"method": "levels", "ladder": [1], "shared": False, **short}]
    model = compress(None, recipe("digits-mlp", *steps, epochs=2), few, quiet=True)
    scales = {name: np.abs(weight) for name, weight in layer_weights(model).items()}
    for name, rows in scales.items():
        np.testing.assert_allclose(rows, np.broadcast_to(rows[:, :1], rows.shape), rtol=1e-6, err_msg=name)
    assert len(np.unique(scales["fc1"][:, 0].round(6))) > 1


def test_pruned_weights_stay_zero_and_survivors_are_signs(few: Dataset) -> None:
    short = {k: {**v, "training": {"epochs": 1}} for k, v in SHORT.items() if k != "finish"} | {"finish": {"epochs": 1}}
    cut = {"method": "magnitude", "density": 0.2, "training": {"epochs": 1}}
    steps = [quadratics(1), cut, {"method": "levels", "ladder": [4, 1], **short}]
    model = compress(None, recipe("digits-mlp", *steps, epochs=2), few, quiet=True)
    nonzeros = next(s for s in model.metadata["steps"] if s["method"] == "magnitude")["nonzeros"]
    weights = layer_weights(model).values()
    assert sum(int(np.count_nonzero(w)) for w in weights) == nonzeros
    assert all(np.abs(w).max() == 1 for w in weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ladder": []}, "ladder of bits"),
        ({"ladder": [9]}, "ladder of bits"),
        ({"ladder": [2, 4]}, "ladder that falls"),
        ({"admm": {"hard": True}}, "hard = false"),
        ({"settle": {"shares": [0.5]}}, "end at 1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        recipe("digits-mlp", {"method": "levels", **settings})
