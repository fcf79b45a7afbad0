"""Rows and columns inside blocks: the shape of the zeros, the count, and the energy against simpler structures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime.errors import ModelError
from model_prep.structures import BlockColumns, BlockRows, BlockRowsAndColumns, Bools, Layer, Weights
from tests.model_prep.structures.shapes import DENSITIES, SEEDS, dense_layers, energies, kept, layers

SIDES = st.integers(1, 9)


def _blocks(matrix: Bools, rows: int, columns: int) -> Iterator[Bools]:
    for top in range(0, matrix.shape[0], rows):
        for left in range(0, matrix.shape[1], columns):
            yield matrix[top : top + rows, left : left + columns]


@given(layer=layers, rows=SIDES, columns=SIDES, seed=SEEDS, density=DENSITIES)
@settings(max_examples=300, deadline=None)
def test_the_zeros_of_a_block_are_a_union_of_its_rows_and_columns(
    layer: Layer, rows: int, columns: int, seed: int, density: float
) -> None:
    structure, energy = BlockRowsAndColumns(rows, columns), energies(layer, seed)
    mask = structure.keep(layer, energy, density)
    for block in _blocks(layer.matrix(mask), rows, columns):
        assert np.array_equal(block, np.any(block, axis=1)[:, None] & np.any(block, axis=0)[None, :])
    budget = max(1, round(density * layer.size))
    height, width = layer.matrix_shape
    assert 1 <= mask.sum() <= budget
    assert mask.sum() > budget - max(min(rows, height), min(columns, width))
    assert structure.keep(layer, energy * mask, density)[mask].all()


@given(layer=dense_layers(4, 24), rows=SIDES, columns=SIDES, seed=SEEDS, density=DENSITIES)
@settings(max_examples=100, deadline=None)
def test_never_worse_than_row_pieces_or_column_pieces_alone(
    layer: Layer, rows: int, columns: int, seed: int, density: float
) -> None:
    energy = energies(layer, seed)
    mask = BlockRowsAndColumns(rows, columns).keep(layer, energy, density)
    for kind, longest in ((BlockRows, columns), (BlockColumns, rows)):
        labels = kind(rows, columns).labels(layer)
        sizes = np.bincount(labels.ravel())
        if len(set(sizes)) == 1:  # with pieces of one size the best choice is known
            count = max(1, round(density * layer.size)) // sizes[0]
            best = np.sort(np.bincount(labels.ravel(), weights=energy.ravel()))[::-1][:count].sum()
            assert kept(mask, energy) >= best * (1 - 1e-12), longest


def test_columns_alone_are_chosen_where_they_keep_more_than_the_greedy_order() -> None:
    energy = np.array([[5.0, 4, 3, 8], [8, 4, 0, 1], [4, 4, 9, 2], [1, 5, 6, 2]])
    mask = BlockRowsAndColumns(4, 4).keep(Layer("w", "dense", (4, 4)), energy, 0.5)
    assert mask.sum() == 8
    assert kept(mask, energy) >= max(np.sort(energy.sum(axis=axis))[2:].sum() for axis in (0, 1)) == 39


def test_a_planted_structure_is_found() -> None:
    rng = np.random.default_rng(3)
    layer = Layer("w", "dense", (32, 48))
    rows, columns = rng.random((4, 6, 8)) < 0.5, rng.random((4, 6, 8)) < 0.5
    rows[..., 0] = columns[..., 0] = True
    planted = (rows[:, :, :, None] & columns[:, :, None, :]).swapaxes(1, 2).reshape(32, 48)
    energy = np.where(planted, 1 + rng.random((32, 48)), 0.01 * rng.random((32, 48)))
    mask = BlockRowsAndColumns(8, 8).keep(layer, energy, planted.mean())
    assert np.array_equal(mask, planted)


def test_smaller_blocks_keep_more_energy_and_single_weights_most() -> None:
    layer = Layer("w", "dense", (48, 48))
    energy = energies(layer, 5)
    shares = [kept(BlockRowsAndColumns(n, n).keep(layer, energy, 0.2), energy) for n in (48, 16, 8, 4, 2)]
    assert shares == sorted(shares)
    assert np.array_equal(BlockRowsAndColumns(1, 1).keep(layer, energy, 0.2), Weights().keep(layer, energy, 0.2))


@given(layer=dense_layers(8, 16), seed=SEEDS)
@settings(max_examples=50, deadline=None)
def test_keeps_more_than_a_random_mask_of_the_structure(layer: Layer, seed: int) -> None:
    rng, energy = np.random.default_rng(seed), energies(layer, seed)
    rival = np.zeros(layer.shape, dtype=np.bool_)
    for block in _blocks(rival, 4, 4):
        rows, columns = (rng.random(n) < 0.6 for n in block.shape)
        block[:] = np.outer(rows, columns)
    slack = 3 / layer.size  # what whole pieces may leave unused of the budget
    mask = BlockRowsAndColumns(4, 4).keep(layer, energy, min(1.0, float(rival.mean()) + slack))
    assert kept(mask, energy) >= kept(rival, energy)


def test_groupings_are_the_two_partitions_of_the_penalty() -> None:
    assert BlockRowsAndColumns(2, 3).groupings == (BlockRows(2, 3), BlockColumns(2, 3))
    with pytest.raises(ModelError, match="at least 1 x 1"):
        BlockRowsAndColumns(3, 0)
