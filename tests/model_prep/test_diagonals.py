"""Diagonal classes: agreement with a brute-force Toeplitz matrix, with the planner's packing, and what pruning removes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from he_runtime.compile import lower
from he_runtime.cost import load_default
from he_runtime.model import CompressedModel, Node
from model_prep import export
from model_prep.graph import Graph
from model_prep.packing.diagonals import contiguous_positions, diagonal_classes, diagonal_mask, set_ids
from model_prep.packing.packing import packed_classes
from model_prep.reference_models import random_reference

SEAL = load_default("tenseal")  # where products cost enough that a packing always follows their number


def conv_node(output: tuple[int, int, int], stride: int, padding: int, dilation: int = 1, groups: int = 1) -> Node:
    attrs = {"stride": [stride] * 2, "padding": [padding] * 2, "dilation": [dilation] * 2, "groups": groups}
    return Node("conv", "conv2d", ("x",), output, attrs, {"weight": "w"})


def partition(classes: np.ndarray) -> set[frozenset[int]]:
    """The grouping that class numbers stand for, whatever the numbers are."""
    flat = classes.ravel()
    return {frozenset(np.flatnonzero(flat == c).tolist()) for c in np.unique(flat)}


@given(out=st.integers(1, 12), width=st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_dense_classes_are_cyclic_diagonals(out: int, width: int) -> None:
    node = Node("fc", "dense", ("x",), (out,), {}, {"weight": "w"})
    classes = diagonal_classes(node, (out, width), contiguous_positions((out,), (width,)))
    modulus = min(1 << (out - 1).bit_length() if out > 1 else 1, 1 << (width - 1).bit_length() if width > 1 else 1)
    for r in range(out):
        for c in range(width):
            assert classes[r, c] == (c - r) % modulus


@given(
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_convolution_classes_match_the_toeplitz_matrix(
    stride: int, padding: int, dilation: int, groups: int, seed: int
) -> None:
    """Random slots on both sides; each weight's set of diagonals is gathered one multiply at a time."""
    rng = np.random.default_rng(seed)
    size, channels, kernel = 5, 2, 2
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    rows = rng.permutation(256)[: 4 * out * out].reshape(4, out, out)
    columns = rng.permutation(256)[: channels * size * size].reshape(channels, size, size)
    modulus = 16
    shape = (4, channels // groups, kernel, kernel)
    expected: dict[frozenset[int], set[int]] = {}
    for index, (o, i, dy, dx) in enumerate(np.ndindex(*shape)):
        source = o * groups // 4 * (channels // groups) + i
        diagonals = set()
        for y, x in np.ndindex(out, out):
            iy, ix = y * stride - padding + dy * dilation, x * stride - padding + dx * dilation
            if 0 <= iy < size and 0 <= ix < size:
                diagonals.add(int(columns[source, iy, ix] - rows[o, y, x]) % modulus)
        expected.setdefault(frozenset(diagonals), set()).add(index)
    classes = diagonal_classes(
        conv_node((4, out, out), stride, padding, dilation, groups), shape, (rows, columns), modulus
    )
    assert partition(classes) == {frozenset(v) for v in expected.values()}


def test_set_ids_ignore_order_repetition_and_absence() -> None:
    table = np.array([[1, 2, -1], [2, 1, 1], [2, -1, -1], [2, 2, 2], [-1, -1, -1]])
    ids = set_ids(table)
    assert ids[0] == ids[1] and ids[2] == ids[3] and len({ids[0], ids[2], ids[4]}) == 3


class Separable(nn.Module):
    """Depthwise and pointwise convolution, which the plan merges into one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(2, 4, 3, padding=1, groups=2)
        self.pointwise = nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.square(self.pointwise(self.depthwise(torch.square(x)))).flatten(1))
        return y


def made(name: str) -> CompressedModel:
    if name != "separable":
        return random_reference(name)
    torch.manual_seed(0)
    return export(Separable(), torch.randn(2, 2, 8, 8))


def products(model: CompressedModel) -> dict[str, int]:
    """Plaintext products per linear stage as the planner lowers the model."""
    packed = lower(model, 8192, 1, SEAL, pitched=False)[0].packing.packed
    return {name: layer.diagonals.products for name, layer in packed.items()}


@pytest.mark.parametrize("name", ["digits-mlp", "digits-cnn", "mnist-tenseal-cnn", "mnist-lola", "separable"])
def test_pruned_classes_vanish_from_the_plan(name: str) -> None:
    model = made(name)
    graph = Graph.from_model(model)
    classes = packed_classes(graph, 8192, SEAL)
    weights = {key: np.asarray(graph.arrays[key], dtype=np.float64) for key in classes}
    mask = diagonal_mask(weights, classes, dict.fromkeys(classes, 0.5))
    pruned = model.with_(arrays={**model.arrays, **{k: w * mask.keep[k] for k, w in weights.items()}})
    dense, sparse = products(model), products(pruned)
    for stage, count in dense.items():
        assert sparse[stage] <= (count + 1) // 2, stage


def test_classes_count_the_products_of_the_dense_plan() -> None:
    model = random_reference("digits-cnn")
    counts = {key: len(np.unique(c)) for key, c in packed_classes(Graph.from_model(model), 8192).items()}
    assert sorted(counts.values()) == sorted(products(model).values())


def test_a_layer_whose_weights_mix_falls_back_to_contiguous_slots() -> None:
    nodes = (
        Node("a", "dense", ("x",), (4,), {}, {"weight": "wa"}),
        Node("b", "dense", ("a",), (4,), {}, {"weight": "wb"}),
    )
    arrays = {"wa": np.ones((4, 4)), "wb": np.ones((4, 4))}
    classes = packed_classes(Graph("x", (4,), "b", nodes, arrays), 4096)
    assert {k: len(np.unique(v)) for k, v in classes.items()} == {"wa": 4, "wb": 4}


@given(seed=st.integers(0, 1000), density=st.floats(0.05, 1.0))
@settings(max_examples=50, deadline=None)
def test_the_strongest_classes_stay_whole(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    weight, classes = rng.normal(size=(6, 8)), rng.integers(0, 8, size=(6, 8))
    keep = diagonal_mask({"w": weight}, {"w": classes}, {"w": density}).keep["w"]
    labels = np.unique(classes)
    kept = [c for c in labels if keep[classes == c].all()]
    lost = [c for c in labels if not keep[classes == c].any()]
    assert len(kept) + len(lost) == len(labels) and len(kept) == max(1, round(density * len(labels)))
    energy = {c: float((weight[classes == c] ** 2).sum()) for c in labels}
    assert not lost or min(energy[c] for c in kept) >= max(energy[c] for c in lost)
