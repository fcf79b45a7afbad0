"""Global magnitude pruning: exact counts, minima, ties, and the networks that a plain ranking would cut in two."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime.errors import ModelError
from model_prep.masks import Mask, magnitude_mask

SHAPES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=6)


def layers(shapes: list[list[int]], seed: int, coarse: bool) -> dict[str, npt.NDArray[np.float64]]:
    """Random layers of very different scales; coarse values make ties."""
    rng = np.random.default_rng(seed)
    found = {f"w{i}": rng.normal(size=s) * 10.0 ** rng.integers(-3, 3) for i, s in enumerate(shapes)}
    return {k: np.sign(v) for k, v in found.items()} if coarse else found


@given(
    shapes=SHAPES,
    seed=st.integers(0, 2**32),
    density=st.floats(0.0, 1.0),
    minimum=st.floats(0.0, 0.5),
    coarse=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_exact_count_and_minimum_per_layer(
    shapes: list[list[int]], seed: int, density: float, minimum: float, coarse: bool
) -> None:
    weights = layers(shapes, seed, coarse)
    total = sum(w.size for w in weights.values())
    floor = int(minimum * total)
    budget = round(density * total)
    if sum(min(floor, w.size) for w in weights.values()) > budget:
        with pytest.raises(ModelError, match="minimum"):
            magnitude_mask(weights, density, minimum)
        return
    mask = magnitude_mask(weights, density, minimum)
    assert mask.nonzeros == budget
    for name, weight in weights.items():
        keep = mask.keep[name]
        assert keep.shape == weight.shape
        assert keep.sum() >= min(floor, weight.size)
        if keep.any() and not keep.all():
            assert np.abs(weight[keep]).min() >= np.abs(weight[~keep]).max()


@given(shapes=SHAPES, seed=st.integers(0, 2**32), density=st.floats(0.0, 1.0))
@settings(max_examples=100, deadline=None)
def test_without_a_minimum_it_is_the_global_ranking(shapes: list[list[int]], seed: int, density: float) -> None:
    weights = layers(shapes, seed, coarse=False)
    mask = magnitude_mask(weights, density, minimum=0.0)
    pool = np.concatenate([np.abs(w).ravel() for w in weights.values()])
    kept = np.concatenate([mask.keep[k].ravel() for k in weights])
    assert set(np.flatnonzero(kept)) == set(np.argsort(-pool, kind="stable")[: kept.sum()])


def test_ties_fall_to_the_lower_index() -> None:
    mask = magnitude_mask({"a": np.ones((2, 2)), "b": -np.ones(4)}, 0.375, minimum=0.0)
    assert mask.keep["a"].ravel().tolist() == [True, True, True, False]
    assert not mask.keep["b"].any()


def test_lenet_shapes_of_the_literature() -> None:
    """LeNet-5 at 99.7 %: the minimum of 0.05 % (215 weights) lifts the last layer; at 99.9 % it is infeasible."""
    rng = np.random.default_rng(0)
    shapes = [(20, 25), (50, 500), (500, 800), (10, 500)]
    weights = {f"l{i}": rng.normal(size=s) * np.sqrt(2 / s[1]) for i, s in enumerate(shapes)}
    plain, guarded = magnitude_mask(weights, 0.003, 0.0), magnitude_mask(weights, 0.003, 0.0005)
    assert plain.keep["l3"].sum() < 215 == guarded.keep["l3"].sum()
    assert plain.nonzeros == guarded.nonzeros == round(0.003 * 430_500)
    with pytest.raises(ModelError, match="minimum of 215"):
        magnitude_mask(weights, 0.001, 0.0005)


def test_a_collapsed_layer_is_named() -> None:
    weights = {"big": np.ones((10, 10)), "small": np.full((4, 4), 1e-6)}
    assert magnitude_mask(weights, 0.5, minimum=0.0).collapsed() == ["small"]
    assert magnitude_mask(weights, 0.5, minimum=0.02).collapsed() == []


def test_multiply_add_density_counts_positions() -> None:
    mask = Mask({"conv": np.array([True, False]), "fc": np.array([True, True])}, "unstructured")
    assert mask.multiply_add_density({"conv": 9, "fc": 1}) == (9 + 2) / (18 + 2)
    assert mask.density == 0.75
