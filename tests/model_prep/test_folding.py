"""Folding changes the graph and not its values."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime.model import CompressedModel, InputSpec, Node, OutputSpec
from he_runtime.reference import calibrate, forward
from model_prep.folding.folding import fold
from model_prep.graph import Graph
from model_prep.quantize import quantize_model
from model_prep.quantizers import Symmetric

Floats = npt.NDArray[np.float64]
CONV = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}


class Sketch:
    """A small graph under construction, with random arrays."""

    def __init__(self, seed: int, shape: tuple[int, ...] = (2, 4, 4)) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = shape
        self.nodes: list[Node] = []
        self.arrays: dict[str, Floats] = {}

    def add(
        self,
        op: str,
        inputs: str | tuple[str, ...],
        shape: tuple[int, ...],
        attrs: dict[str, object] | None = None,
        **arrays: Floats,
    ) -> str:
        name = f"{op}{len(self.nodes)}"
        keys = {role: f"{name}.{role}" for role in arrays}
        self.arrays |= {keys[role]: values for role, values in arrays.items()}
        sources = (inputs,) if isinstance(inputs, str) else inputs
        self.nodes.append(Node(name, op, sources, shape, attrs or {}, keys))
        return name

    def conv(
        self, source: str, channels: tuple[int, int], size: int, padding: int = 1, groups: int = 1, bias: bool = True
    ) -> str:
        arrays = {"weight": self.rng.normal(size=(channels[1], channels[0] // groups, 3, 3)) / 3}
        if bias:
            arrays["bias"] = self.rng.normal(size=channels[1])
        attrs = {**CONV, "padding": [padding, padding], "groups": groups}
        out = size + 2 * padding - 2
        return self.add("conv2d", source, (channels[1], out, out), attrs, **arrays)

    def quadratic(self, source: str, shape: tuple[int, ...], per_channel: bool = True) -> str:
        size = (shape[0],) if per_channel else ()
        sign = self.rng.choice([-1.0, 1.0], size=size)
        a = np.asarray(sign * self.rng.uniform(0.05, 1.0, size=size))
        return self.add(
            "quadratic",
            source,
            shape,
            a=a,
            b=np.asarray(self.rng.normal(size=size)),
            c=np.asarray(self.rng.normal(size=size)),
        )

    def affine(self, source: str, shape: tuple[int, ...]) -> str:
        return self.add(
            "affine", source, shape, scale=self.rng.normal(size=shape[0]), shift=self.rng.normal(size=shape[0])
        )

    def dense(self, source: str, width: int, out: int, bias: bool = True) -> str:
        arrays = {"weight": self.rng.normal(size=(out, width)) / width**0.5}
        if bias:
            arrays["bias"] = self.rng.normal(size=out)
        return self.add("dense", source, (out,), **arrays)

    def flatten(self, source: str, shape: tuple[int, ...]) -> str:
        return self.add("reshape", source, (int(np.prod(shape)),))

    def pool(self, source: str, channels: int, size: int, padding: int = 0) -> str:
        out = (size + 2 * padding) // 2
        attrs = {"kernel": [2, 2], "stride": [2, 2], "padding": [padding, padding]}
        return self.add("avg_pool2d", source, (channels, out, out), attrs)

    def model(self) -> CompressedModel:
        return CompressedModel(
            "sketch", InputSpec("x", self.shape), OutputSpec(self.nodes[-1].name), tuple(self.nodes), self.arrays
        )

    def batch(self) -> Floats:
        return np.asarray(self.rng.normal(size=(5, *self.shape)))


def folded_model(model: CompressedModel) -> CompressedModel:
    graph = fold(Graph.from_model(model))
    return graph.to_model(model.name, model.input)


def assert_same(model: CompressedModel, folded: CompressedModel, x: Floats) -> None:
    before, after = forward(model, x), forward(folded, x)
    assert np.abs(before - after).max() <= 1e-9 * max(1.0, np.abs(before).max())


def is_square(model: CompressedModel, node: Node) -> bool:
    a, b, c = (model.array(node, role) for role in "abc")
    assert a is not None and b is not None and c is not None
    return bool((a == 1).all() and not b.any() and not c.any())


@given(
    seed=st.integers(0, 10**6),
    padding=st.integers(0, 1),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    per_channel=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_network_folds_to_squares(seed: int, padding: int, groups: int, bias: bool, per_channel: bool) -> None:
    s = Sketch(seed)
    size = 4 + 2 * padding - 2
    y = s.affine(s.conv("x", (2, 4), 4, padding=padding, bias=bias), (4, size, size))
    y = s.affine(s.quadratic(y, (4, size, size), per_channel), (4, size, size))
    y = s.quadratic(s.conv(y, (4, 4), size, padding=1, groups=groups, bias=bias), (4, size, size), per_channel)
    y = s.flatten(s.pool(y, 4, size), (4, size // 2, size // 2))
    s.dense(y, 4 * (size // 2) ** 2, 3, bias)
    model = s.model()
    folded = folded_model(model)
    assert_same(model, folded, s.batch())
    assert not [n for n in folded.nodes if n.op == "affine"]
    first, second = (n for n in folded.nodes if n.op == "quadratic")
    assert is_square(folded, second)
    a, b = folded.array(first, "a"), folded.array(first, "b")
    assert a is not None and b is not None and (a == 1).all() and not b.any()


def test_a_constant_before_a_padded_convolution_stays_in_its_node() -> None:
    s = Sketch(1)
    y = s.quadratic(s.conv("x", (2, 3), 4), (3, 4, 4))
    s.conv(y, (3, 2), 4, padding=1)
    model = s.model()
    folded = folded_model(model)
    c = folded.array(folded.nodes[1], "c")
    assert c is not None and c.any() and c.shape == (3,)
    assert_same(model, folded, s.batch())


def test_a_constant_before_an_unpadded_convolution_moves() -> None:
    s = Sketch(1)
    y = s.quadratic(s.conv("x", (2, 3), 4), (3, 4, 4))
    s.conv(y, (3, 2), 4, padding=0)
    model = s.model()
    folded = folded_model(model)
    assert is_square(folded, folded.nodes[1])
    assert_same(model, folded, s.batch())


@given(seed=st.integers(0, 10**6), same=st.booleans())
@settings(max_examples=25, deadline=None)
def test_residual_sums_fold_only_where_exact(seed: int, same: bool) -> None:
    """conv(x) is read by the sum and by a second branch; quadratics lie before, inside and after the sum."""
    s = Sketch(seed)
    trunk = s.quadratic(s.conv("x", (2, 3), 4), (3, 4, 4))
    branch = s.quadratic(s.conv(trunk, (3, 3), 4), (3, 4, 4))
    total = s.add("add", (branch, branch if same else trunk), (3, 4, 4))
    after = s.quadratic(s.affine(total, (3, 4, 4)), (3, 4, 4))
    s.dense(s.flatten(after, (3, 4, 4)), 48, 2)
    model = s.model()
    assert_same(model, folded_model(model), s.batch())


def test_a_square_after_a_sum_of_two_convolutions_folds_into_both() -> None:
    s = Sketch(3)
    left, right = s.conv("x", (2, 3), 4), s.conv("x", (2, 3), 4)
    y = s.quadratic(s.add("add", (left, right), (3, 4, 4)), (3, 4, 4))
    s.dense(s.flatten(y, (3, 4, 4)), 48, 2)
    model = s.model()
    folded = folded_model(model)
    assert is_square(folded, folded.node(y))
    assert_same(model, folded, s.batch())


def test_a_constant_that_meets_itself_again_is_counted_twice() -> None:
    s = Sketch(4)
    y = s.quadratic(s.conv("x", (2, 3), 4), (3, 4, 4))
    total = s.add("add", (s.flatten(y, (3, 4, 4)), s.flatten(y, (3, 4, 4))), (48,))
    s.dense(total, 48, 2)
    model = s.model()
    assert_same(model, folded_model(model), s.batch())


def test_shared_weights_are_left_to_the_other_reader() -> None:
    s = Sketch(5)
    first = s.conv("x", (2, 2), 4)
    y = s.quadratic(first, (2, 4, 4))
    second = s.conv(y, (2, 2), 4)
    shared = dict(s.nodes[0].arrays)
    s.nodes[-1] = Node(second, "conv2d", (y,), (2, 4, 4), s.nodes[-1].attrs, shared)
    z = s.quadratic(second, (2, 4, 4))
    s.dense(s.flatten(z, (2, 4, 4)), 32, 2)
    model = s.model().with_(arrays={k: v for k, v in s.arrays.items() if not k.startswith(second)})
    folded = folded_model(model)
    assert_same(model, folded, s.batch())
    assert is_square(folded, folded.node(z))


def test_the_output_itself_is_never_rescaled() -> None:
    s = Sketch(6)
    s.quadratic(s.conv("x", (2, 3), 4), (3, 4, 4))
    model = s.model()
    assert_same(model, folded_model(model), s.batch())


def test_an_affine_map_of_the_input_goes_forward() -> None:
    s = Sketch(7)
    y = s.affine("x", (2, 4, 4))
    s.conv(y, (2, 3), 4, padding=0)
    model = s.model()
    folded = folded_model(model)
    assert [n.op for n in folded.nodes] == ["conv2d"]
    assert_same(model, folded, s.batch())


def test_a_padded_pool_keeps_a_constant_from_moving() -> None:
    s = Sketch(8)
    y = s.pool(s.quadratic(s.conv("x", (2, 3), 4), (3, 4, 4)), 3, 4, padding=1)
    s.dense(s.flatten(y, (3, 3, 3)), 27, 2)
    model = s.model()
    assert_same(model, folded_model(model), s.batch())


def test_quantized_arrays_become_real_and_statistics_go() -> None:
    s = Sketch(9)
    y = s.quadratic(s.conv("x", (2, 3), 4), (3, 4, 4))
    s.dense(s.flatten(y, (3, 4, 4)), 48, 2)
    model = quantize_model(calibrate(s.model(), s.batch()), {"conv2d0.weight": Symmetric(8)})
    folded = folded_model(model)
    assert not folded.quantization and not folded.ranges
    assert not [k for k in folded.arrays if k.startswith("stats.")]
    assert_same(model, folded, s.batch())


@pytest.mark.parametrize("a", [0.0, 1e-30], ids=["zero", "tiny"])
def test_a_vanishing_curvature_is_not_divided_by(a: float) -> None:
    s = Sketch(10)
    y = s.conv("x", (2, 2), 4)
    y = s.add("quadratic", y, (2, 4, 4), a=np.array([a, 1.0]), b=np.ones(2), c=np.ones(2))
    s.dense(s.flatten(y, (2, 4, 4)), 32, 2)
    model = s.model()
    assert_same(model, folded_model(model), s.batch())
