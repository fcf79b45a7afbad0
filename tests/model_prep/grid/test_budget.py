"""Grids with prices: costs in closed form, paths that only go down, masks within their budget, floors that are said."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime import compile, price
from he_runtime.cost import load_default
from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel
from model_prep.grid.budget import Budget, budget_of, rounded_up
from model_prep.grid.layer import GridLayer, GridPath
from model_prep.grid.rows import RowLayer
from model_prep.reference_models import random_reference

Floats = np.ndarray
TABLES = ("tenseal", "native")


def toy(babies: int, giants: int, line_ms: tuple[float, float] = (2.0, 3.0)) -> GridLayer:
    """babies x giants cells, one class each; the first baby and the first giant are steps of zero."""
    b, g = np.meshgrid(np.arange(babies), np.arange(giants), indexing="ij")
    lines = np.stack([b.ravel() - 1, np.where(g.ravel() > 0, g.ravel() - 1 + babies - 1, -1)], axis=1)
    cells = np.stack([np.arange(babies * giants)] * 2, axis=1)
    ms = np.array([line_ms[0]] * (babies - 1) + [line_ms[1]] * (giants - 1))
    return GridLayer(np.arange(babies * giants).reshape(babies, giants), cells, lines, ms, 0.5)


def walked(path: GridPath, to_ms: float) -> GridPath:
    while path.ms > to_ms and np.isfinite(path.ratio):
        path.step()
    return path


def test_a_grid_costs_its_cells_and_the_lines_they_lie_on() -> None:
    grid = toy(4, 3)
    assert grid.cost(np.ones(12, dtype=np.bool_)) == pytest.approx(12 * 0.5 + 3 * 2.0 + 2 * 3.0)
    one = np.zeros(12, dtype=np.bool_)
    one[0] = True  # no rotation at all
    assert grid.cost(one) == pytest.approx(0.5) == grid.least_ms
    one[5] = True  # baby 1, giant 2
    assert grid.cost(one) == pytest.approx(2 * 0.5 + 2.0 + 3.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_paths_only_go_down_and_end_at_the_strongest_class(babies: int, giants: int, seed: int) -> None:
    grid = toy(babies, giants)
    energy = np.random.default_rng(seed).gamma(0.3, size=(babies, giants))
    (path,) = grid.paths(energy)
    seen = [path.choice]
    while np.isfinite(path.ratio):
        path.step()
        seen.append(path.choice)
    for before, after in pairwise(seen):
        assert after.ms < before.ms and after.lost >= before.lost and not (after.keep & ~before.keep).any()
    assert seen[-1].keep.sum() == 1 and seen[-1].keep.ravel()[energy.argmax()]
    assert seen[0].lost == pytest.approx(0, abs=1e-12)


def test_the_energy_of_whole_lines_goes_before_that_of_scattered_cells() -> None:
    """Half of the cells on half of the lines, or half on all of them: as much energy, twice the rotations."""
    energy = np.full((8, 8), 1e-3)
    energy[:4, :4] = 1.0
    (path,) = toy(8, 8).paths(energy)
    keep = walked(path, 16 * 0.5 + 3 * 2.0 + 3 * 3.0).choice.keep
    assert keep[:4, :4].all() and keep.sum() == 16


@pytest.fixture(scope="module")
def mlp() -> CompressedModel:
    return random_reference("digits-mlp")


def budget(model: CompressedModel, backend: str, *, gather: bool = True) -> tuple[Budget, float]:
    table = load_default(backend)
    plan = compile(model, table=table)
    plain = compile(model, table=table, degrees=(plan.params.degree,), pitched=False)
    ms, plain_ms = (price(p, table).latency_ms for p in (plan, plain))
    return budget_of(model, plan.params.degree, table, plain_ms, gather=gather), ms


def energies(model: CompressedModel, keys: object) -> dict[str, np.ndarray]:
    return {key: np.asarray(model.arrays[key], dtype=np.float64) ** 2 for key in keys}  # type: ignore[attr-defined]


@pytest.mark.parametrize("backend", TABLES)
def test_masks_are_within_the_budget_and_so_are_their_plans(mlp: CompressedModel, backend: str) -> None:
    found, dense_ms = budget(mlp, backend, gather=False)
    for share in (0.8, 0.4):
        target = found.least_ms + share * (dense_ms - found.least_ms)
        chosen = found.masks(energies(mlp, found.options), target)
        assert found.total_ms(chosen) <= target
        arrays = {**mlp.arrays, **{k: mlp.arrays[k] * c.keep for k, c in chosen.items()}}
        table = load_default(backend)
        planned = price(compile(mlp.with_(arrays=arrays), table=table), table).latency_ms
        assert planned <= target * 1.1  # its own splits; primes may change with what is left


def test_a_dense_network_is_left_alone_by_a_budget_of_its_own_size(mlp: CompressedModel) -> None:
    found, dense_ms = budget(mlp, "tenseal", gather=False)
    chosen = found.masks(energies(mlp, found.options), dense_ms * 1.03)  # what reads pitched copies is a little cheaper
    assert all(choice.keep.all() for choice in chosen.values())


def test_a_target_below_the_floor_is_refused_with_the_floor(mlp: CompressedModel) -> None:
    found, _ = budget(mlp, "tenseal")
    with pytest.raises(ModelError, match=rf"cannot prune to .* need at least {rounded_up(found.least_ms):g} ms"):
        found.need(found.least_ms * 0.9)
    least = found.masks(energies(mlp, found.options), found.least_ms * 0.9)
    assert found.total_ms(least) == pytest.approx(found.least_ms)


@pytest.mark.parametrize("backend", TABLES)
def test_row_lengths_have_the_price_of_their_plans(backend: str) -> None:
    """A gathered first layer with equal rows costs in a plan what the row layer says, uploads included."""
    model = random_reference("mnist-mlp")
    found, _ = budget(model, backend)
    key = "fc1.weight"
    rows = next(option for option in found.options[key] if isinstance(option, RowLayer))
    table = load_default(backend)
    energy = energies(model, found.options)
    at = {}
    for choice in (path.choice for path in rows.paths(energy[key])):
        length = int(choice.keep.sum(axis=1)[0])
        assert (choice.keep.sum(axis=1) == length).all()
        strongest = np.sort(energy[key], axis=1)[:, -length:].sum()
        assert energy[key][choice.keep].sum() == pytest.approx(strongest)
        if length in (8, 32, 64):
            masked = model.with_(arrays={**model.arrays, key: model.arrays[key] * choice.keep})
            plan = compile(masked, table=table, input_packings=("gathered",))
            at[length] = choice.ms, price(plan, table).latency_ms
    modelled, planned = np.array([at[n] for n in (8, 32, 64)]).T
    assert np.diff(modelled) == pytest.approx(np.diff(planned), rel=0.1, abs=0.02 * planned.max())
