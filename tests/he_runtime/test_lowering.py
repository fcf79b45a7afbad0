"""Layouts, diagonals and splits against plain matrix products, over random shapes and sparsities."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime.layout import WindowLayout, contiguous, image, image_candidates
from he_runtime.lower.diagonals import diagonal_set, pack
from he_runtime.lower.maps import LinearMap
from he_runtime.lower.split import best_split


def _apply(map_: LinearMap, source: object, target: object, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = diagonal_set(map_, source, target)  # type: ignore[arg-type]
    packed = pack(map_, target, found)  # type: ignore[arg-type]
    slots = source.slots  # type: ignore[attr-defined]
    inputs = np.append(x, 0.0)[source.slot_map]  # type: ignore[attr-defined]
    sums: dict[tuple[int, int], np.ndarray] = {}
    for k, (i, j, _) in enumerate(found.cells):
        term = np.resize(packed.vectors[k], slots) * np.roll(inputs[j], -packed.split.baby[k])
        key = (int(i), int(packed.split.giant[k]))
        sums[key] = sums.get(key, 0) + term
    out = np.zeros((target.ciphertexts, slots))  # type: ignore[attr-defined]
    for (i, giant), value in sums.items():
        out[i] += np.roll(value, -giant)
    for step in found.folds:
        out = out + np.roll(out, -step, axis=1)
    return out, np.append(map_.matrix @ x, 0.0)[target.slot_map]  # type: ignore[attr-defined]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 150),
    columns=st.integers(1, 150),
    density=st.sampled_from([0.02, 0.3, 1.0]),
    slots=st.sampled_from([32, 64, 256]),
    seed=st.integers(0, 2**16),
)
def test_diagonals_compute_the_matrix_product(rows: int, columns: int, density: float, slots: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(rows, columns)) * (rng.random((rows, columns)) < density)
    weight[0, 0] = 1.0
    map_ = LinearMap(sp.csr_array(weight), np.zeros(rows)).without_zeros()
    got, expected = _apply(map_, contiguous((columns,), slots), contiguous((rows,), slots), rng.normal(size=columns))
    np.testing.assert_allclose(got, expected, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_split_adds_up_and_counts_its_rotations(data: st.DataObject) -> None:
    modulus = data.draw(st.sampled_from([16, 64, 128]))
    diagonals = np.array(sorted(data.draw(st.sets(st.integers(0, modulus - 1), min_size=1))))
    inputs = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(diagonals), max_size=len(diagonals))))
    outputs = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(diagonals), max_size=len(diagonals))))
    split = best_split(diagonals, inputs, outputs, modulus)
    assert ((split.baby + split.giant - diagonals) % modulus == 0).all()
    pairs = {(j, a) for j, a in zip(inputs, split.baby, strict=True) if a}
    groups = {(i, b) for i, b in zip(outputs, split.giant, strict=True) if b}
    assert split.rotations == len(pairs) + len(groups)
    assert split.rotations <= len({(j, d) for j, d in zip(inputs, diagonals, strict=True) if d})  # plain rotations


def test_a_dense_square_matrix_needs_two_square_roots() -> None:
    diagonals = np.arange(64)
    split = best_split(diagonals, np.zeros(64, dtype=np.int64), np.zeros(64, dtype=np.int64), 64)
    assert split.rotations == 14


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 20),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    plane=st.tuples(st.integers(6, 14), st.integers(6, 14)),
)
def test_layouts_place_every_element_once(channels: int, size: tuple[int, int], plane: tuple[int, int]) -> None:
    for layout in image_candidates((channels, *size), 4096, (plane,)):
        assert len(np.unique(layout.positions)) == layout.size
        assert layout.span > layout.positions.max()
        assert (np.unique(layout.slot_map[layout.slot_map >= 0]) == np.arange(layout.size)).all()


def test_multiplexed_channels_share_a_plane() -> None:
    layout = image((16, 4, 4), 4096, (8, 8), 2, 64)
    assert layout.span == 256  # four planes of 64 slots hold sixteen channels of 16 pixels


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_window_layout_gathers_the_taps(padding: int) -> None:
    window = WindowLayout(
        (2, 6, 5), (3, 3), (1, 1), (padding, padding), (1, 1), (4 + 2 * padding, 3 + 2 * padding), 1024
    )
    image_ = np.arange(60.0).reshape(2, 6, 5) + 1
    padded = np.pad(image_, ((0, 0), (padding, padding), (padding, padding)))
    got = np.append(image_.ravel(), 0.0)[window.sources].reshape(2, 3, 3, *window.outputs)
    for i in range(3):
        for j in range(3):
            np.testing.assert_array_equal(got[:, i, j], padded[:, i : i + window.outputs[0], j : j + window.outputs[1]])
