"""Gather-scatter patterns: counts, optimality, groups with distinct banks, and gathers without conflicts."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime.errors import ModelError
from model_prep.structures import Balanced, Bools, Layer, Weights, gather_cycles, peel, shift_classes
from tests.model_prep.structures.shapes import SEEDS, energies, kept

SIZES = [(8, 8), (8, 4), (8, 2), (8, 1), (4, 4), (4, 1), (16, 4), (6, 2), (1, 1), (3, 1)]
CASES = st.tuples(
    st.sampled_from(SIZES), st.integers(1, 20), st.integers(0, 20), st.floats(0.0, 1.0), SEEDS
)  # (B, k), rows, columns beyond B, density, seed


def _case(rows: int, columns: int, seed: int) -> tuple[Layer, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    layer = Layer("w", "dense", (rows, columns))
    return layer, energies(layer, seed)


def _random_mask(rows: int, columns: int, bank: int, per_row: int, groups: int, seed: int) -> Bools:
    """A mask of the structure without regard to any energy."""
    layer, energy = _case(rows, columns, seed)
    return Balanced(bank, per_row, solver="greedy").keep(layer, energy, groups * per_row / columns)


@given(case=CASES, solver=st.sampled_from(["exact", "greedy"]))
@settings(max_examples=120, deadline=None)
def test_rows_and_banks_hold_exact_counts_and_groups_distinct_banks(
    case: tuple[tuple[int, int], int, int, float, int], solver: str
) -> None:
    (bank, per_row), rows, extra, density, seed = case
    columns = bank + extra
    layer, energy = _case(rows, columns, seed)
    structure = Balanced(bank, per_row, solver=solver)
    groups = structure.groups(layer, density)
    assert groups == min(bank // per_row * (columns // bank), max(1, round(density * columns / per_row)))
    mask = structure.keep(layer, energy, density)
    assert (mask.sum(axis=1) == per_row * groups).all()
    height = bank // per_row
    for start in range(0, rows, height):
        bundle = mask[start : start + height]
        loads = np.array([bundle[:, lane::bank].sum() for lane in range(bank)])
        assert (loads == groups).all() if len(bundle) == height else (loads <= groups).all()
        row, column = peel(bundle, bank, per_row)
        assert row.shape == column.shape == (groups, bank)
        used = row >= 0
        assert (column % bank == np.arange(bank))[used].all()
        for one in range(groups):
            assert np.bincount(row[one][used[one]], minlength=len(bundle)).tolist() == [per_row] * len(bundle)
        rebuilt = np.zeros(bundle.shape, dtype=np.bool_)
        rebuilt[row[used], column[used]] = True
        assert np.array_equal(rebuilt, bundle)
        assert used.sum() == bundle.sum()
    again = structure.keep(layer, energy * mask, density)
    assert again[mask].all()
    if rows % height == 0:
        assert gather_cycles(mask, bank, per_row) == mask.sum() / bank


@given(case=CASES)
@settings(max_examples=60, deadline=None)
def test_the_linear_program_beats_greed_and_greed_beats_chance(
    case: tuple[tuple[int, int], int, int, float, int],
) -> None:
    (bank, per_row), rows, extra, density, seed = case
    layer, energy = _case(rows, bank + extra, seed)
    exact, greedy = (Balanced(bank, per_row, solver=s).keep(layer, energy, density) for s in ("exact", "greedy"))
    groups = Balanced(bank, per_row).groups(layer, density)
    rival = _random_mask(rows, bank + extra, bank, per_row, groups, seed + 1)
    assert exact.sum() == greedy.sum() == rival.sum()
    assert kept(exact, energy) >= kept(greedy, energy) >= 0.9 * kept(rival, energy)
    assert kept(exact, energy) >= kept(rival, energy) * (1 - 1e-7)
    free = Weights().keep(layer, energy, exact.mean())
    assert kept(free, energy) >= kept(exact, energy) * (1 - 1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_the_linear_program_finds_the_best_of_all_masks(seed: int) -> None:
    layer, energy = _case(2, 6, seed)  # GS(4, 2) with one group: two of each row, the four banks once
    best = 0.0
    for first, second in product(combinations(range(6), 2), repeat=2):
        if len({c % 4 for c in (*first, *second)}) == 4:
            best = max(best, float(energy[0, first].sum() + energy[1, second].sum()))
    mask = Balanced(4, 2).keep(layer, energy, 2 / 6)
    assert mask.sum() == 4
    assert kept(mask, energy) == pytest.approx(best, rel=1e-9)


def test_smaller_k_keeps_more_since_its_patterns_include_those_of_larger_k() -> None:
    """A pattern of GS(8, 8) with G groups is one of GS(8, 4) with 2 G, and so on: only the bundles grow."""
    layer, energy = _case(32, 64, 0)
    free = kept(Weights().keep(layer, energy, 0.125), energy)
    shares = []
    for per_row in (8, 4, 2, 1):
        exact, greedy = (
            kept(Balanced(8, per_row, solver=s).keep(layer, energy, 0.125), energy) for s in ("exact", "greedy")
        )
        rival = kept(_random_mask(32, 64, 8, per_row, 8 // per_row, 99), energy)
        assert exact >= greedy > max(0.98 * exact, 2 * rival)
        assert greedy == exact or per_row < 8  # one row per bundle: the banks of a row are independent
        shares.append(exact / free)
    assert shares == sorted(shares)
    assert shares[0] > 0.85


@given(
    size=st.sampled_from(SIZES),
    rows=st.integers(1, 20),
    extra=st.integers(0, 20),
    density=st.floats(0.0, 1.0),
    seed=SEEDS,
)
@settings(max_examples=100, deadline=None)
def test_cyclic_groups_are_shifts_and_the_best_ones(
    size: tuple[int, int], rows: int, extra: int, density: float, seed: int
) -> None:
    bank, per_row = size
    columns, height = bank + extra, bank // per_row
    layer, energy = _case(rows, columns, seed)
    structure = Balanced(bank, per_row, cyclic=True)
    groups = structure.groups(layer, density)
    mask = structure.keep(layer, energy, density)
    assert (mask.sum(axis=1) == per_row * groups).all()
    for start in range(0, rows, height):
        peel(mask[start : start + height], bank, per_row)  # balanced, or it would raise
    row, column = np.indices(mask.shape)
    shift = (column % bank // per_row - row % height) % height
    gains = []
    for s in range(height):
        held = np.unique(np.stack([row, column % bank, mask])[:, shift == s], axis=1)
        depth = {int(mask[r, lane::bank].sum()) for r, lane, _ in held.T}
        assert len(depth) == 1  # every row and bank of a shift is used equally often
        ranked = np.zeros(columns // bank)
        for r, lane in {(int(r), int(lane)) for r, lane, _ in held.T}:
            ranked += np.sort(energy[r, lane::bank])[::-1][: columns // bank]
        gains.extend(ranked.tolist())
    assert kept(mask, energy) == pytest.approx(sum(sorted(gains)[::-1][:groups]))
    if per_row == 1 and rows >= bank:
        assert len(shift_classes(mask, bank)) <= groups
    assert np.array_equal(structure.keep(layer, energy * mask, density), mask)


def test_cyclic_patterns_of_a_square_matrix_are_its_diagonals() -> None:
    layer, energy = _case(16, 16, 4)
    mask = Balanced(16, 1, cyclic=True).keep(layer, energy, 0.25)
    row, column = np.indices(mask.shape)
    classes = (column - row) % 16
    sums = np.bincount(classes.ravel(), weights=energy.ravel())
    assert np.array_equal(mask, np.isin(classes, np.argsort(-sums)[:4]))
    assert shift_classes(mask, 16).tolist() == sorted(np.argsort(-sums)[:4].tolist())
    free = Balanced(16, 1).keep(layer, energy, 0.25)
    assert len(shift_classes(free, 16)) > 8
    assert kept(free, energy) > kept(mask, energy)


def test_conflicts_cost_an_irregular_mask_gathers() -> None:
    layer, energy = _case(64, 128, 0)
    mask = Weights().keep(layer, energy, 0.125)
    by_hand = sum(max(int(row[lane::8].sum()) for lane in range(8)) for row in mask)
    assert gather_cycles(mask, 8, 8) == by_hand
    balanced = Balanced(8, 8, solver="greedy").keep(layer, energy, 0.125)
    assert gather_cycles(balanced, 8, 8) == mask.sum() / 8 == 128
    assert by_hand > 1.5 * 128
    one_row = np.zeros((2, 16), dtype=np.bool_)
    one_row[0, :4] = True
    assert gather_cycles(one_row, 4, 2) == 2  # four banks at once, but only two weights of a row


def test_a_convolution_is_balanced_in_its_matrix_view() -> None:
    layer = Layer("w", "conv2d", (8, 4, 3, 3))
    mask = layer.matrix(Balanced(4, 2).keep(layer, energies(layer, 0), 0.25))
    assert mask.sum() == 8 * 2 * round(0.25 * 36 / 2)
    assert [int(mask[:2, lane::4].sum()) for lane in range(4)] == [4] * 4


def test_what_cannot_be_balanced_is_refused() -> None:
    with pytest.raises(ModelError, match=r"GS\(8, 3\)"):
        Balanced(8, 3)
    with pytest.raises(ModelError, match="'fast'"):
        Balanced(8, 2, solver="fast")
    with pytest.raises(ModelError, match="at most 5 banks"):
        Balanced(8, 2).keep(Layer("w", "dense", (4, 5)), np.ones((4, 5)), 0.5)
    with pytest.raises(ModelError, match="cannot cut a mask into groups"):
        peel(np.eye(4, 8, dtype=np.bool_) | np.eye(4, 8, 4, dtype=np.bool_), 4, 4)
