"""Partitions: what each structure groups, exact counts, and projections that no other mask of the structure beats."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime.errors import ModelError
from model_prep.structures import (
    BlockColumns,
    BlockRows,
    Channels,
    Columns,
    Diagonals,
    Grouped,
    Kernels,
    Layer,
    Rows,
    Tiles,
    Weights,
    group_energy,
    group_norms,
    keep_strongest,
)
from tests.model_prep.structures.shapes import DENSITIES, SEEDS, convolutions, energies, kept, layers

SIDES = st.integers(1, 7)
STRUCTURES = st.one_of(
    st.sampled_from([Weights(), Rows(), Columns(), Kernels(), Channels()]),
    *(st.builds(kind, SIDES, SIDES) for kind in (Tiles, BlockRows, BlockColumns)),
)


@given(structure=STRUCTURES, layer=layers, seed=SEEDS, density=DENSITIES)
@settings(max_examples=200, deadline=None)
def test_exactly_the_rounded_share_of_groups_stays_and_no_choice_keeps_more(
    structure: Grouped, layer: Layer, seed: int, density: float
) -> None:
    energy = energies(layer, seed)
    labels = structure.labels(layer)
    count = int(labels.max()) + 1
    assert labels.shape == layer.shape
    assert np.array_equal(np.unique(labels), np.arange(count))
    mask = structure.keep(layer, energy, density)
    chosen = np.unique(labels[mask])
    assert len(chosen) == max(1, round(density * count))
    assert np.array_equal(mask, np.isin(labels, chosen))
    rival = np.isin(labels, np.random.default_rng(seed).permutation(count)[: len(chosen)])
    assert kept(mask, energy) >= kept(rival, energy) * (1 - 1e-12)
    assert np.array_equal(structure.keep(layer, energy * mask, density), mask)


def test_groups_of_a_convolution() -> None:
    layer = Layer("w", "conv2d", (4, 2, 3, 3), groups=2)
    weights = np.ones(layer.shape)
    for structure, count, size in ((Rows(), 4, 18), (Columns(), 36, 2), (Kernels(), 8, 9), (Channels(), 4, 18)):
        assert group_energy(structure.labels(layer), weights).tolist() == [size] * count
    columns = Columns().labels(layer)
    for filter_, channel, y, x in product(range(4), range(2), range(3), range(3)):
        assert columns[filter_, channel, y, x] == (filter_ // 2 * 2 + channel) * 9 + y * 3 + x


def test_blocks_of_a_size_that_does_not_divide_have_smaller_edges() -> None:
    layer = Layer("w", "dense", (5, 7))
    tiles, rows, columns = (kind(2, 3).labels(layer) for kind in (Tiles, BlockRows, BlockColumns))
    assert tiles.tolist() == [[0, 0, 0, 1, 1, 1, 2]] * 2 + [[3, 3, 3, 4, 4, 4, 5]] * 2 + [[6, 6, 6, 7, 7, 7, 8]]
    assert rows[1].tolist() == [3, 3, 3, 4, 4, 4, 5]
    assert columns[:, 6].tolist() == [6, 6, 13, 13, 20]


@given(layer=convolutions(), seed=SEEDS)
@settings(max_examples=50, deadline=None)
def test_blocks_of_the_whole_matrix_are_rows_and_columns(layer: Layer, seed: int) -> None:
    height, width = layer.matrix_shape
    energy = energies(layer, seed)
    assert np.array_equal(BlockRows(height, width).keep(layer, energy, 0.5), Rows().keep(layer, energy, 0.5))
    if layer.groups == 1:
        assert np.array_equal(BlockColumns(height, width).labels(layer), Columns().labels(layer))
    assert Tiles(height, width).keep(layer, energy, 0.0).all()
    assert np.array_equal(Tiles(1, 1).keep(layer, energy, 0.3), Weights().keep(layer, energy, 0.3))


def test_diagonals_follow_the_given_classes() -> None:
    layer = Layer("w", "dense", (4, 4))
    row, column = np.indices((4, 4))
    structure = Diagonals({"w": 10 * ((column - row) % 4)})
    energy = np.where((column - row) % 4 == 3, 2.0, 1.0)
    assert np.array_equal(structure.keep(layer, energy, 0.5), np.isin((column - row) % 4, [0, 3]))
    with pytest.raises(ModelError, match="got no classes"):
        structure.labels(Layer("v", "dense", (4, 4)))
    with pytest.raises(ModelError, match=r"classes of shape \(4, 4\)"):
        structure.labels(Layer("w", "dense", (2, 8)))


def test_energies_and_norms_of_groups() -> None:
    labels, weights = np.array([[0, 1], [1, 2]]), np.array([[1.0, -3.0], [4.0, 0.0]])
    assert group_energy(labels, weights**2).tolist() == [1.0, 25.0, 0.0]
    assert group_norms(labels, weights).tolist() == [1.0, 5.0, 0.0]
    assert keep_strongest(labels, np.ones((2, 2)), 2).tolist() == [[True, True], [True, False]]


def test_ties_fall_to_the_lower_group() -> None:
    layer = Layer("w", "dense", (4, 2))
    assert Rows().keep(layer, np.ones(layer.shape), 0.5)[:, 0].tolist() == [True, True, False, False]


@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan")])
def test_a_density_outside_the_unit_interval_is_refused(density: float) -> None:
    with pytest.raises(ModelError, match="need the kept share"):
        Rows().keep(Layer("w", "dense", (2, 2)), np.ones((2, 2)), density)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_energies_that_are_no_energies_are_refused(value: float) -> None:
    with pytest.raises(ModelError, match="negative or not finite"):
        Rows().keep(Layer("w", "dense", (2, 2)), np.array([[1.0, value], [1.0, 1.0]]), 0.5)


def test_empty_blocks_are_refused() -> None:
    with pytest.raises(ModelError, match="at least 1 x 1"):
        Tiles(0, 3)


@pytest.mark.parametrize("kind", [Tiles, BlockRows, BlockColumns])
def test_a_block_larger_than_the_matrix_is_the_whole(kind: type[Tiles | BlockRows | BlockColumns]) -> None:
    layer = Layer("w", "conv2d", (4, 2, 3, 3))
    whole = kind(4, 18).labels(layer)
    for rows, columns in ((10**30, 10**30), (5, 10**30), (10**30, 19)):
        assert np.array_equal(kind(rows, columns).labels(layer), whole)
