"""Crossbars: counts in multiples, whole crossbars that vanish, and the energy that stays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime.errors import ModelError
from model_prep.structures import Crossbars, Layer, crossbar_count, occupied_crossbars, packed_crossbars
from tests.model_prep.structures.shapes import DENSITIES, SEEDS, energies, kept, layers

SIDES = st.integers(1, 6)


@given(layer=layers, rows=SIDES, columns=SIDES, seed=SEEDS, density=DENSITIES)
@settings(max_examples=200, deadline=None)
def test_counts_are_multiples_and_the_crossbars_are_within_the_budget(
    layer: Layer, rows: int, columns: int, seed: int, density: float
) -> None:
    structure, energy = Crossbars(rows, columns), energies(layer, seed)
    keep = structure.keep(layer, energy, density)
    mask = layer.matrix(keep)
    height, width = layer.matrix_shape
    filters, taps = np.any(mask, axis=1), np.any(mask, axis=0)
    assert np.array_equal(mask, filters[:, None] & taps[None, :])
    assert filters.sum() % rows == 0 or filters.all()
    assert taps.sum() % columns == 0 or taps.all()
    total = crossbar_count(height, width, rows, columns)
    assert packed_crossbars(mask, rows, columns) <= max(1, round(density * total))
    assert packed_crossbars(mask, rows, columns) == crossbar_count(filters.sum(), taps.sum(), rows, columns)
    assert structure.keep(layer, energy * keep, density)[keep].all()


@given(layer=layers, rows=SIDES, columns=SIDES, seed=SEEDS, filters=DENSITIES, taps=DENSITIES)
@settings(max_examples=100, deadline=None)
def test_shares_are_rounded_up_to_multiples(
    layer: Layer, rows: int, columns: int, seed: int, filters: float, taps: float
) -> None:
    energy = energies(layer, seed)
    mask = layer.matrix(Crossbars(rows, columns).keep_shares(layer, energy, filters, taps))
    height, width = layer.matrix_shape
    for wanted, count, unit, full in (
        (filters * height, np.any(mask, axis=1).sum(), rows, height),
        (taps * width, np.any(mask, axis=0).sum(), columns, width),
    ):
        assert count == min(full, max(1, np.ceil(wanted / unit)) * unit)
    # No other filters are better with these columns, and no other columns with these filters: what alternation ends at.
    kept_filters, kept_taps, matrix = np.any(mask, axis=1), np.any(mask, axis=0), layer.matrix(energy)
    for sums, count in (
        (matrix[:, kept_taps].sum(axis=1), kept_filters.sum()),
        (matrix[kept_filters].sum(axis=0), kept_taps.sum()),
    ):
        assert kept(mask, matrix) >= np.sort(sums)[::-1][:count].sum() * (1 - 1e-12)


def test_three_quarters_of_the_crossbars_fall_away() -> None:
    rng = np.random.default_rng(0)
    layer = Layer("w", "dense", (64, 64))
    rows, columns = (np.sort(rng.permutation(64)[:32]) for _ in range(2))
    energy = 0.01 * rng.random(layer.shape)
    energy[np.ix_(rows, columns)] += 1
    mask = Crossbars(8, 8).keep(layer, energy, 0.25)
    assert np.array_equal(np.flatnonzero(np.any(mask, axis=1)), rows)
    assert np.array_equal(np.flatnonzero(np.any(mask, axis=0)), columns)
    assert crossbar_count(64, 64, 8, 8) == 64
    assert packed_crossbars(mask, 8, 8) == 16
    assert occupied_crossbars(mask, 8, 8) > 48  # scattered rows empty hardly a crossbar in place


def test_occupied_crossbars_counts_tiles_with_a_non_zero() -> None:
    matrix = np.zeros((5, 5), dtype=np.bool_)
    assert occupied_crossbars(matrix, 2, 2) == packed_crossbars(matrix, 2, 2) == 0
    matrix[0, 0] = matrix[1, 1] = matrix[4, 4] = matrix[0, 4] = True
    assert occupied_crossbars(matrix, 2, 2) == 3
    assert packed_crossbars(matrix, 2, 2) == 3
    assert packed_crossbars(matrix, 3, 3) == 1
    assert occupied_crossbars(matrix, 10**30, 10**30) == packed_crossbars(matrix, 10**30, 10**30) == 1
    assert packed_crossbars(np.zeros_like(matrix), 2, 2) == 0


def test_a_crossbar_without_cells_is_refused() -> None:
    with pytest.raises(ModelError, match="at least 1 x 1"):
        Crossbars(0, 8)
