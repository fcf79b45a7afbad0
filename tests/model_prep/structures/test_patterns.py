"""Kernel patterns: the library, the choice of patterns and kernels, and the compact storage."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime.errors import ModelError
from model_prep.structures import (
    Bools,
    KernelPatterns,
    KernelStorage,
    Layer,
    PatternLibrary,
    decode_kernels,
    default_entries,
    encode_kernels,
    extract_library,
    random_library,
)
from tests.model_prep.structures.shapes import DENSITIES, SEEDS, convolutions, energies, kept

LAYERS = convolutions(kernel=3)
NATURAL_POOL = [{4, *others} for others in combinations([0, 1, 2, 3, 5, 6, 7, 8], 3)]


def _rotations(mask: Bools) -> int:
    """Channel packing: one rotation per input channel and tap that any filter uses, the centre for free."""
    return int(np.delete(np.any(mask, axis=0).reshape(-1, 9), 4, axis=1).sum())


@given(layer=LAYERS, seed=SEEDS, size=st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_the_library_holds_the_most_frequent_patterns(layer: Layer, seed: int, size: int) -> None:
    weights = np.random.default_rng(seed).standard_normal(layer.shape)
    library = extract_library({"w": weights}, 4, size)
    expected: dict[frozenset[int], int] = {}
    for kernel in np.abs(weights).reshape(-1, 9):
        others = sorted((t for t in range(9) if t != 4), key=lambda t: -kernel[t])[:3]
        pattern = frozenset({4, *others})
        expected[pattern] = expected.get(pattern, 0) + 1
    found = [frozenset(np.flatnonzero(p).tolist()) for p in library.of((3, 3))]
    assert all(set(p) in NATURAL_POOL for p in found)
    assert library.counts[(3, 3)].tolist() == sorted(expected.values(), reverse=True)[:size]
    assert [expected[p] for p in found] == library.counts[(3, 3)].tolist()


def test_each_kernel_size_has_its_own_patterns_and_others_are_left_alone() -> None:
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 3, 3, 3), "b": (4, 8, 5, 5), "c": (8, 8, 1, 1), "d": (10, 64)}
    library = extract_library({key: rng.standard_normal(shape) for key, shape in shapes.items()})
    assert {kernel: p.sum(axis=(1, 2)).tolist() for kernel, p in library.patterns.items()} == {
        (3, 3): [4] * 8,
        (5, 5): [9] * 8,
    }
    assert library.of((5, 5))[:, 2, 2].all()
    assert default_entries((1, 1)) == 1
    with pytest.raises(ModelError, match="7x7"):
        library.of((7, 7))


def test_only_the_strongest_kernels_vote() -> None:
    weights = np.zeros((4, 1, 3, 3))
    weights[:3, 0, 0, :] = 0.1 * np.arange(1, 4)  # three weak kernels of the top row
    weights[3, 0, 2, :] = [5, 6, 7]
    top, bottom = ({4, 0, 1, 2}, {4, 6, 7, 8})
    for strongest, pattern in ((1.0, top), (0.25, bottom)):
        first = extract_library({"w": weights}, size=1, strongest=strongest).of((3, 3))[0]
        assert set(np.flatnonzero(first).tolist()) == pattern


def test_kernels_of_edges_and_centres_give_a_library_like_a_laplacian() -> None:
    rng = np.random.default_rng(1)
    smooth = np.array([[1.0, 2.0, 1.0], [2.0, 8.0, 2.0], [1.0, 2.0, 1.0]])
    library = extract_library({"w": smooth * (1 + 0.4 * rng.standard_normal((64, 16, 3, 3)))})
    mass = library.mass((3, 3))
    assert mass[1, 1] == 1
    assert mass.sum() == pytest.approx(4)
    assert min(mass[[0, 1, 1, 2], [1, 0, 2, 1]]) > max(mass[[0, 0, 2, 2], [0, 2, 0, 2]])


@given(
    layer=LAYERS,
    seed=SEEDS,
    density=DENSITIES,
    assignment=st.sampled_from(["kernel", "input_channel"]),
    connectivity=st.floats(0.1, 1.0),
    per_filter=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_every_kernel_has_a_pattern_of_the_library_or_nothing(
    layer: Layer, seed: int, density: float, assignment: str, connectivity: float, per_filter: bool
) -> None:
    energy = energies(layer, seed)
    library = random_library((3, 3), 6, seed=seed)
    structure = KernelPatterns(library, assignment, connectivity, per_filter)
    mask = structure.keep(layer, energy, density)
    allowed = {p.tobytes() for p in library.of((3, 3))}
    kernels = mask.reshape(-1, 3, 3)
    alive = kernels.any(axis=(1, 2))
    assert all(k.tobytes() in allowed for k in kernels[alive])
    assert kernels[alive, 1, 1].all()
    share = min(connectivity, density * 9 / 4)
    width, filters = layer.shape[1], layer.shape[0]
    if per_filter:
        per = max(1, round(share * width))
        assert (alive.reshape(filters, width).sum(axis=1) == per).all()
    else:
        assert alive.sum() == max(1, round(share * filters * width))
    assert mask.sum() == 4 * alive.sum()
    if assignment == "input_channel":
        channels = layer.input_channels().ravel()
        assert all(len({k.tobytes() for k in kernels[alive & (channels == c)]}) <= 1 for c in np.unique(channels))
    assert structure.keep(layer, energy * mask, density)[mask].all()


@given(layer=LAYERS, seed=SEEDS, connectivity=st.just(1.0) | st.floats(0.1, 1.0))
@settings(max_examples=100, deadline=None)
def test_no_other_choice_of_patterns_and_kernels_keeps_more(layer: Layer, seed: int, connectivity: float) -> None:
    rng, energy = np.random.default_rng(seed), energies(layer, seed)
    library = random_library((3, 3), 8, seed=seed)
    mask = KernelPatterns(library, "kernel", connectivity).keep(layer, energy, 1.0)
    patterns, kernels = library.of((3, 3)), energy.reshape(-1, 3, 3)
    best = np.sort([max((k * p).sum() for p in patterns) for k in kernels])[::-1]
    assert kept(mask, energy) == pytest.approx(best[: max(1, round(connectivity * len(kernels)))].sum())
    by_channel = KernelPatterns(library, "input_channel", connectivity).keep(layer, energy, 1.0)
    assert by_channel.sum() == mask.sum()
    assert kept(by_channel, energy) <= kept(mask, energy) * (1 + 1e-12)
    channels = layer.input_channels().ravel()
    rival = patterns[rng.integers(len(patterns), size=channels.max() + 1)[channels]]
    if connectivity == 1.0:  # with fewer kernels the alternation finds a local optimum only
        assert kept(by_channel, energy) >= float((kernels * rival).sum()) * (1 - 1e-12)


def test_one_pattern_per_channel_spares_rotations_and_one_per_kernel_does_not() -> None:
    """8 -> 16 channels, 64 rotations and 1152 products before pruning."""
    layer = Layer("w", "conv2d", (16, 8, 3, 3), 64)
    weights = np.random.default_rng(0).standard_normal(layer.shape)
    library = extract_library({"w": weights})
    masks = [KernelPatterns(library, a).keep(layer, weights**2, 1.0) for a in ("kernel", "input_channel")]
    assert [int(m.sum()) for m in masks] == [512, 512]
    assert _rotations(np.ones(layer.shape, dtype=np.bool_)) == 64
    assert _rotations(masks[0]) > 50
    assert _rotations(masks[1]) == 24
    sparse = KernelPatterns(library, "input_channel", 1 / 3.6).keep(layer, weights**2, 1.0)
    assert sparse.sum() == 4 * round(128 / 3.6)


def test_a_pattern_by_channel_serves_the_kernels_that_stay() -> None:
    """Many weak kernels that will fall away must not outvote the strong one that stays."""
    library = random_library((3, 3), 2)
    first, second = library.of((3, 3))
    energy = np.tile(0.9 * (second & ~first), (20, 1, 1, 1)).astype(np.float64)
    energy[0, 0] = 10.0 * (first & ~second)
    layer = Layer("w", "conv2d", (20, 1, 3, 3))
    mask = KernelPatterns(library, "input_channel", 1 / 20).keep(layer, energy, 1.0)
    assert np.array_equal(mask[0, 0], first)
    assert mask.sum() == 4


def test_point_convolutions_have_connectivity_only_and_dense_layers_stay() -> None:
    structure = KernelPatterns(random_library((3, 3)), connectivity=0.5)
    point, dense = Layer("p", "conv2d", (4, 6, 1, 1)), Layer("d", "dense", (4, 6))
    energy = np.arange(24.0)
    mask = structure.keep(point, energy.reshape(point.shape), 1.0)
    assert np.flatnonzero(mask).tolist() == list(range(12, 24))
    assert structure.keep(dense, energy.reshape(4, 6), 0.1).all()


@given(
    layer=LAYERS, seed=SEEDS, connectivity=st.floats(0.1, 1.0), kind=st.sampled_from([np.int8, np.float32, np.float64])
)
@settings(max_examples=100, deadline=None)
def test_storage_round_trips_and_states_its_size(
    layer: Layer, seed: int, connectivity: float, kind: type[np.generic]
) -> None:
    rng = np.random.default_rng(seed)
    library = random_library((3, 3), 8, seed=seed)
    mask = KernelPatterns(library, connectivity=connectivity).keep(layer, energies(layer, seed), 1.0)
    weights: npt.NDArray[np.generic] = (rng.integers(-9, 10, layer.shape) * mask).astype(kind)
    patterns = library.of((3, 3))
    storage = encode_kernels(weights, patterns)
    assert np.array_equal(decode_kernels(storage, patterns), weights)
    data = storage.to_bytes()
    kernels = int((weights.reshape(-1, 9) != 0).any(axis=1).sum())
    numbers = -(-kernels * (layer.shape[1] - 1).bit_length() // 8) + -(-kernels * 3 // 8)
    assert len(data) == storage.byte_size == 4 * (layer.shape[0] + 1) + numbers + 4 * kernels * np.dtype(kind).itemsize
    again = KernelStorage.from_bytes(data, storage.shape, patterns, kind)
    assert again.to_bytes() == data
    assert np.array_equal(decode_kernels(again, patterns), weights)
    for broken in (data[:-1], data + b"\0", b""):
        with pytest.raises(ModelError, match="cannot read stored kernels"):
            KernelStorage.from_bytes(broken, storage.shape, patterns, kind)


def test_a_kernel_outside_the_library_cannot_be_stored() -> None:
    with pytest.raises(ModelError, match="cannot store 2 kernels"):
        encode_kernels(np.ones((2, 1, 3, 3)), random_library((3, 3)).of((3, 3)))


def test_settings_that_make_no_sense_are_refused() -> None:
    library = random_library((3, 3))
    with pytest.raises(ModelError, match="'row'"):
        KernelPatterns(library, "row")
    with pytest.raises(ModelError, match="connectivity 0"):
        KernelPatterns(library, connectivity=0.0)
    with pytest.raises(ModelError, match="cannot keep 10 entries"):
        extract_library({"w": np.ones((1, 1, 3, 3))}, 10)
    with pytest.raises(ModelError, match="all kernels are zero"):
        extract_library({"w": np.zeros((1, 1, 3, 3))})
    with pytest.raises(ModelError, match="size 0"):
        extract_library({}, size=0)
    with pytest.raises(ModelError, match="equally many entries"):
        PatternLibrary({(1, 2): np.array([[[True, True]], [[True, False]]])}, {(1, 2): np.array([1, 1])})
