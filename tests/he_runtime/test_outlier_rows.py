"""Elements alone in a ciphertext: dense rows of a pruned layer as dot products, counted, clear and encrypted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime import compile
from he_runtime.cost import load_default
from he_runtime.layout import Layout, contiguous
from he_runtime.lower.candidates import with_rows_alone
from he_runtime.lower.diagonals import DiagonalSet, diagonal_set, pack
from he_runtime.lower.joint import JointLayout
from he_runtime.lower.maps import LinearMap
from he_runtime.lower.stage_types import LinearStage
from he_runtime.lower.stages import build_stages
from he_runtime.lower.stagger import StaggeredLayout, staggered_set
from tests.he_runtime.networks import Builder
from tests.he_runtime.packing_checks import SLOTS, assert_equals_graph, encrypted_error, packed

Floats = npt.NDArray[np.float64]
BABIES, GIANTS = range(4), 2


def grid(size: int, dense: Sequence[int], rng: np.random.Generator) -> Floats:
    """A square weight on the diagonals {0..3} + {0, size / 4}, with some full rows; all rows of about norm one."""
    weight, rows = np.zeros((size, size)), np.arange(size)
    for baby in BABIES:
        for giant in range(0, GIANTS * size // 4, size // 4):
            weight[rows, (rows + baby + giant) % size] = rng.normal(size=size)
    weight[list(dense)] = rng.normal(size=(len(dense), size))
    return weight / np.sqrt((weight != 0).sum(axis=1, keepdims=True))


def pruned(size: int, dense: Sequence[int], last: bool = False) -> Builder:
    """16 - size - size on the grid - 10, squares between; or without the last layer."""
    b = Builder((16,))
    b.dense(16, size)
    b.square((size,))
    b.dense(size, size)
    b.arrays[f"{b.last}.weight"] = grid(size, dense, b.rng)
    if not last:
        b.square((size,))
        b.dense(size, 10)
    return b


def layer(builder: Builder) -> tuple[LinearMap, str, str]:
    """The pruned layer's map, its name, and that of the last layer."""
    model = builder.calibrated()
    stage = build_stages(model, SLOTS)[2]
    assert isinstance(stage, LinearStage)
    return stage.map, stage.name, model.nodes[-1].name


# Dense, |A| - 1 + |B| - 1 rotations for the best |A| * |B| >= size; on the grid 4 - 1 + 2 - 1, and log2(size) per row alone.
@pytest.mark.parametrize(("size", "dense", "whole"), [(64, (5,), 7 + 7), (128, (5,), 11 + 10), (128, (5, 77), 11 + 10)])
def test_dense_rows_of_a_grid_become_dot_products(size: int, dense: tuple[int, ...], whole: int) -> None:
    builder = pruned(size, dense)
    map_, name, last = layer(builder)
    found = packed(builder.calibrated())
    layout, diagonals = found.layouts[name], found.packed[name].diagonals
    plain = diagonal_set(map_, contiguous((size,), SLOTS), contiguous((size,), SLOTS))
    assert (plain.rotations, plain.products) == (whole, size)
    assert layout.alone == dense and layout.ciphertexts == 1 + len(dense)
    assert diagonals.rotations == 3 + 1 + len(dense) * int(math.log2(size)) < whole
    assert diagonals.products == 8 + len(dense)
    # 10 outputs have a period of 16: 4 by 4 diagonals, folds from `size`, and one product per element alone.
    after = found.packed[last].diagonals
    assert after.rotations == 3 + 3 + int(math.log2(size // 16)) and after.products == 16 + len(dense)


def test_every_element_alone_pays_for_its_product_and_rescale() -> None:
    """Taken only where the table says so: at the price of a square that no rotation saves, the rows stay together."""
    model = pruned(128, (5,)).calibrated()
    table = load_default("tenseal")
    entries = {
        key: replace(entry, seconds=entry.seconds * (1000 if key[0] == "square" else 1))
        for key, entry in table.entries.items()
    }
    assert any(x.alone for x in packed(model).layouts.values())
    assert not any(x.alone for x in packed(model, table=replace(table, entries=entries)).layouts.values())


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
def test_a_plain_dense_layer_keeps_its_rows_together(density: float) -> None:
    b = Builder((32,))
    b.dense(32, 64)
    b.square((64,))
    b.dense(64, 64, density)
    b.square((64,))
    b.dense(64, 10)
    assert not any(x.alone for x in packed(b.calibrated()).layouts.values())


def test_the_densest_rows_are_candidates_and_ordinary_ones_are_not() -> None:
    weight = grid(64, (3, 9, 20, 40, 41), np.random.default_rng(0))
    weight[9, :32] = 0
    layout = contiguous((64,), SLOTS)
    found = with_rows_alone(layout, LinearMap(sp.csr_array(weight), np.zeros(64)))
    assert [x.alone for x in found] == [(3,), (3, 20), (3, 20, 40), (3, 20, 40, 41)]
    assert with_rows_alone(layout, LinearMap(sp.csr_array(grid(64, (), np.random.default_rng(0))), np.zeros(64))) == []


@pytest.mark.parametrize(("size", "dense"), [(64, (5,)), (128, (5, 77))])
def test_rows_alone_compute_the_graph_also_encrypted(size: int, dense: tuple[int, ...]) -> None:
    builder = pruned(size, dense)
    model = builder.calibrated()
    budget = 0.05 * max(map(abs, model.ranges[model.output.node]))
    plan = compile(model, max_error=budget, table=load_default("tenseal"), pitched=False)
    assert any(f"1 + {len(dense)} ct" in x.layout for x in plan.layers)
    assert_equals_graph(builder, model, plan)
    assert encrypted_error(builder, plan).max() <= plan.error_bound


def test_a_client_reads_outputs_that_are_alone() -> None:
    builder = pruned(128, (127,), last=True)
    model = builder.calibrated()
    plan = compile(model, max_error=0.05 * max(map(abs, model.ranges[model.output.node])))
    assert len(plan.outputs[0].values) == 2 and (plan.outputs[0].slot_map[1] == 127).sum() == 1
    assert_equals_graph(builder, model, plan)
    errors = encrypted_error(builder, plan)
    # The bound is six times the mean sigma; among 128 outputs some have a larger one of their own.
    assert errors[127] <= plan.error_bound and float(np.sqrt((errors**2).mean())) <= 2 * plan.sigma


def test_a_residual_sum_keeps_elements_alone_on_both_sides() -> None:
    b = pruned(128, (5,))
    b.nodes.pop()
    kept = b.last = b.nodes[-1].name
    b.dense(128, 128)
    b.arrays[f"{b.last}.weight"] = grid(128, (5,), b.rng) / 4
    b.add("add", (128,), inputs=(b.last, kept))
    b.square((128,))
    b.dense(128, 10)
    model = b.calibrated()
    plan = compile(model, max_error=0.05 * max(map(abs, model.ranges[model.output.node])))
    assert any("1 + 1 ct" in x.layout for x in plan.layers)
    assert_equals_graph(b, model, plan)


# Layouts and diagonals with elements alone, against plain matrix products


def alone(layout: Layout, count: int, rng: np.random.Generator) -> Layout:
    chosen = rng.choice(layout.size, min(count, layout.size - 1), replace=False)
    return replace(layout, alone=tuple(sorted(chosen.tolist())))


def applied(map_: LinearMap, target: Layout, found: DiagonalSet, inputs: Floats) -> Floats:
    """Rotations, products and folds on slots (ciphertexts, slots)."""
    made, slots = pack(map_, target, found), target.slots
    out = np.zeros((target.ciphertexts, slots))
    for k, (i, j, _) in enumerate(found.cells.tolist()):
        term = np.resize(made.vectors[k], slots) * np.roll(inputs[j], -made.split.baby[k])
        out[i] += np.roll(term, -made.split.giant[k])
    for i in range(len(out)):
        for step in found.folds_of(i):
            out[i] = out[i] + np.roll(out[i], -step)
    return out


def placed(values: Floats, layout: Layout | StaggeredLayout) -> Floats:
    return np.append(values, 0.0)[layout.slot_map]


def matrix(rows: int, columns: int, density: float, rng: np.random.Generator) -> LinearMap:
    weight = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < density)
    weight[0, 0] = 1.0
    return LinearMap(sp.csr_array(weight), np.zeros(rows)).without_zeros()


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.tuples(st.integers(2, 90), st.integers(2, 90), st.integers(0, 40)),
    counts=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    density=st.sampled_from([0.05, 0.4, 1.0]),
    slots=st.sampled_from([32, 64, 256]),
    seed=st.integers(0, 2**16),
)
def test_diagonals_around_elements_alone_compute_the_matrix_product(
    sizes: tuple[int, int, int], counts: tuple[int, int], density: float, slots: int, seed: int
) -> None:
    rng, (rows, first, second) = np.random.default_rng(seed), sizes
    target = alone(contiguous((rows,), slots), counts[0], rng)
    parts = [alone(contiguous((n,), slots), counts[1], rng) for n in (first, second) if n]
    source = parts[0] if len(parts) == 1 else JointLayout(tuple(parts))
    map_, x = matrix(rows, first + second, density, rng), rng.normal(size=first + second)
    inputs = np.concatenate([placed(values, part) for values, part in zip(np.split(x, [first]), parts, strict=False)])
    found = diagonal_set(map_, source, target)
    out = applied(map_, target, found, inputs)
    np.testing.assert_allclose(out, placed(map_.matrix @ x, target), atol=1e-9)
    still = [j in source.uniform or i in target.uniform for i, j in found.cells[:, :2].tolist()]
    assert not found.split.baby[still].any() and not found.split.giant[still].any()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(2, 60),
    columns=st.integers(2, 60),
    copies=st.sampled_from([2, 4]),
    step=st.integers(1, 40),
    seed=st.integers(0, 2**16),
)
def test_staggered_copies_feed_elements_alone(rows: int, columns: int, copies: int, step: int, seed: int) -> None:
    rng, slots = np.random.default_rng(seed), 256
    base, target = contiguous((columns,), slots), alone(contiguous((rows,), slots), 2, rng)
    source = StaggeredLayout(base, max(base.period, target.period), copies, step)
    map_, x = matrix(rows, columns, 0.4, rng), rng.normal(size=columns)
    out = applied(map_, target, staggered_set(map_, source, target), placed(x, source))
    np.testing.assert_allclose(out, placed(map_.matrix @ x, target), atol=1e-9)


@pytest.mark.parametrize("slots", [16, 64])
def test_an_element_alone_stands_in_every_slot_and_nowhere_else(slots: int) -> None:
    layout = replace(contiguous((40,), slots), alone=(3, 39))
    whole = contiguous((40,), slots).ciphertexts
    assert layout.ciphertexts == whole + 2 and layout.uniform == {whole, whole + 1}
    assert (layout.slot_map[whole:] == np.array([[3], [39]])).all()
    assert not np.isin(layout.slot_map[:whole], (3, 39)).any()
    assert len(np.unique(layout.positions)) == 40
    np.testing.assert_array_equal(layout.slot_map.ravel()[layout.positions], np.arange(40))
    values = np.arange(40.0) + 1
    np.testing.assert_array_equal(np.tile(layout.spread(values), slots // layout.period), placed(values, layout))
