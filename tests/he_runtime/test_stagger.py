"""Staggered input copies: the same sums from fewer products, for every shape, number of copies and step."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime import compile
from he_runtime.cost import load_default
from he_runtime.layout import contiguous
from he_runtime.lower.diagonals import pack
from he_runtime.lower.maps import LinearMap
from he_runtime.lower.stagger import StaggeredLayout, staggered_set
from he_runtime.plan.counts import layer_counts, leaf_totals
from tests.he_runtime.networks import NETWORKS


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 60),
    density=st.sampled_from([0.05, 0.4, 1.0]),
    copies=st.sampled_from([2, 4, 8]),
    step=st.integers(1, 40),
    seed=st.integers(0, 2**16),
)
def test_copies_compute_the_matrix_product(
    rows: int, columns: int, density: float, copies: int, step: int, seed: int
) -> None:
    rng, slots = np.random.default_rng(seed), 512
    weight = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < density)
    weight[0, 0] = 1.0
    map_ = LinearMap(sp.csr_array(weight), np.zeros(rows)).without_zeros()
    base, target = contiguous((columns,), slots), contiguous((rows,), slots)
    source = StaggeredLayout(base, max(base.period, target.period), copies, step)
    found = staggered_set(map_, source, target)
    packed = pack(map_, target, found)
    x = rng.normal(size=columns)
    encrypted = np.append(x, 0.0)[source.slot_map[0]]
    out = np.zeros(slots)
    for k, vector in enumerate(packed.vectors):
        term = np.resize(vector, slots) * np.roll(encrypted, -packed.split.baby[k])
        out += np.roll(term, -packed.split.giant[k])
    for fold in found.folds:
        out = out + np.roll(out, -fold)
    np.testing.assert_allclose(out, np.append(map_.matrix @ x, 0.0)[target.slot_map[0]], atol=1e-9)


def test_a_dense_first_layer_takes_one_product_when_the_slots_hold_all_copies() -> None:
    model = NETWORKS["mlp"]().calibrated()
    plan = compile(model, max_error=1.0, degrees=(8192,), table=load_default("tenseal"))
    first = leaf_totals(next(iter(layer_counts(plan).values())))
    assert first["mul_plain"] == 1 and first["rotate"] == 6, "64 rotated copies of 64 values fill 4096 slots"


@pytest.mark.parametrize("step", [1, 3])
def test_the_client_rotates_the_copies(step: int) -> None:
    source = StaggeredLayout(contiguous((8,), 32), 8, 4, step)
    expected = np.concatenate([np.roll(np.arange(8), -k * step) for k in range(4)])
    assert source.slot_map.tolist() == [expected.tolist()]
