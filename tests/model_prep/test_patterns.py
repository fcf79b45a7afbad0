"""Sparsity patterns: equal counts, the structure that each promises, and the rotations that the planner then finds."""

from __future__ import annotations

import numpy as np
import pytest

from he_runtime import compile
from he_runtime.cost import load_default
from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel, InputSpec, Node, OutputSpec
from he_runtime.plan.counts import leaf_totals
from he_runtime.reference import calibrate, forward
from he_runtime.wish import error_budget
from model_prep.channels.permutation import permuted
from model_prep.graph import weight_keys
from model_prep.packing.lines import packed_lines
from model_prep.packing.patterns import PATTERNS, kept_counts, sparsify
from model_prep.reference_models import random_reference

SEAL = load_default("tenseal")  # a back end without a fused transform: every rotation counts the same


@pytest.fixture(scope="module")
def mlp() -> CompressedModel:
    return random_reference("digits-mlp")


@pytest.fixture(scope="module")
def cnn() -> CompressedModel:
    return random_reference("digits-cnn")


def counts(model: CompressedModel, budget: float) -> dict[str, int]:
    return leaf_totals(compile(model, degrees=(8192,), max_error=budget, table=SEAL, pitched=False).counts)


@pytest.mark.parametrize("density", [0.5, 0.1, 0.02])
def test_every_pattern_keeps_the_same_number_of_weights_per_layer(mlp: CompressedModel, density: float) -> None:
    expected = kept_counts(mlp, density)
    assert sum(expected.values()) == pytest.approx(density * 8832, rel=0.05)
    for pattern in PATTERNS:
        sparse = sparsify(mlp, pattern, density)
        assert {key: np.count_nonzero(sparse.arrays[key]) for key in expected} == expected, pattern
        rows = [np.count_nonzero(sparse.arrays[key], axis=1).min() for key in expected]
        assert min(rows) >= 1, "no output is a constant"
        for key in expected:
            assert np.linalg.norm(sparse.arrays[key]) == pytest.approx(np.linalg.norm(mlp.arrays[key]))


def test_structure_and_not_count_is_what_saves_rotations(mlp: CompressedModel) -> None:
    budget = error_budget(mlp)
    dense = counts(mlp, budget)
    found = {pattern: counts(sparsify(mlp, pattern, 0.1, table=SEAL), budget) for pattern in PATTERNS}
    assert found["unstructured"]["rotate"] == dense["rotate"], "some weight is left on every diagonal"
    assert found["unstructured"]["mul_plain"] == dense["mul_plain"]
    assert found["diagonals"]["mul_plain"] <= 0.15 * dense["mul_plain"]
    assert found["grid"]["mul_plain"] <= found["diagonals"]["mul_plain"]
    assert found["grid"]["rotate"] < found["diagonals"]["rotate"] < dense["rotate"]
    assert found["permuted-grid"]["rotate"] == found["grid"]["rotate"]


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_permuting_neurons_keeps_more_energy(network: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(network)
    kept = {p: sparsify(model, p, 0.2).metadata["pattern"]["kept_energy"] for p in PATTERNS}
    assert kept["unstructured"] > kept["permuted-grid"] > kept["grid"]


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_permuting_neurons_changes_no_output(network: str, request: pytest.FixtureRequest) -> None:
    """Any masks do: a network before and after is the same function, whatever made the order."""
    model = request.getfixturevalue(network)
    rng = np.random.default_rng(0)
    masks = {key: rng.random(model.arrays[key].shape) < 0.3 for key in weight_keys(model)}
    moved = permuted(model, lambda energy: masks)
    assert any(not np.array_equal(moved.arrays[key], model.arrays[key]) for key in masks)
    x = np.random.default_rng(1).normal(size=(5, *model.input.shape))
    np.testing.assert_allclose(forward(moved, x), forward(model, x), rtol=1e-9, atol=1e-9)


def test_a_tensor_that_two_layers_read_keeps_its_order() -> None:
    """A residual branch ties the order of channels to its trunk; only the inside of the branch may move."""
    rng = np.random.default_rng(0)
    arrays = {f"w{k}": rng.normal(size=(16, 16)) / 4 for k in range(3)}
    nodes = (
        Node("a", "dense", ("x",), (16,), {}, {"weight": "w0"}),
        Node("b", "dense", ("a",), (16,), {}, {"weight": "w1"}),
        Node("c", "dense", ("b",), (16,), {}, {"weight": "w2"}),
        Node("d", "add", ("a", "c"), (16,)),
    )
    model = calibrate(
        CompressedModel("tied", InputSpec("x", (16,)), OutputSpec("d"), nodes, arrays), rng.normal(size=(8, 16))
    )
    masks = {key: rng.random((16, 16)) < 0.3 for key in arrays}
    moved = permuted(model, lambda energy: masks)
    assert np.array_equal(moved.arrays["w0"], model.arrays["w0"])
    assert not np.array_equal(moved.arrays["w1"], model.arrays["w1"])
    x = rng.normal(size=(4, 16))
    np.testing.assert_allclose(forward(moved, x), forward(model, x), rtol=1e-9, atol=1e-12)


def test_lines_are_the_rotations_of_the_plan(mlp: CompressedModel) -> None:
    """Lines plus folds is what the planner rotates; a fold belongs to no weight."""
    lines = packed_lines(mlp, 8192, SEAL)
    folds = 6 + 2  # of the staggered input's 64 copies, and of the last layer: 64 columns, 16 padded rows
    assert sum(found.line_count for found in lines.values()) + folds == counts(mlp, error_budget(mlp))["rotate"]


def test_the_same_seed_gives_the_same_model(mlp: CompressedModel) -> None:
    first, again, other = (sparsify(mlp, "diagonals", 0.2, seed=s) for s in (3, 3, 4))
    assert first.digest == again.digest != other.digest


def test_a_quantized_model_stays_on_its_grid(mlp: CompressedModel) -> None:
    key = next(iter(weight_keys(mlp)))
    step = float(np.abs(mlp.arrays[key]).max()) / 127
    whole = np.rint(mlp.arrays[key] / step).astype(np.int8)
    quantized = mlp.with_(arrays={**mlp.arrays, key: whole}, quantization={key: step})
    sparse = sparsify(quantized, "grid", 0.25)
    assert sparse.arrays[key].dtype == np.int8
    assert set(np.unique(sparse.arrays[key])) <= set(np.unique(whole)) | {0}
    assert sparse.quantization[key] > step


def test_everything_stays_at_density_one(mlp: CompressedModel) -> None:
    for pattern in PATTERNS:
        sparse = sparsify(mlp, pattern, 1.0)
        for key in weight_keys(mlp):
            np.testing.assert_allclose(sparse.arrays[key], mlp.arrays[key], rtol=1e-12)


def test_what_cannot_be_sparsified_is_refused(mlp: CompressedModel) -> None:
    with pytest.raises(ModelError, match="pattern 'stripes': need one of unstructured"):
        sparsify(mlp, "stripes", 0.5)
    for density in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ModelError, match="density"):
            sparsify(mlp, "grid", density)
    bare = mlp.with_(arrays={k: v for k, v in mlp.arrays.items() if not k.startswith("stats.")})
    with pytest.raises(ModelError, match="try calibrating"):
        sparsify(bare, "grid", 0.5)
