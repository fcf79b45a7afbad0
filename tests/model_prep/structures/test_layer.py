"""What structures see of a network: shapes, positions, groups, and which channel a kernel reads."""

from __future__ import annotations

import numpy as np
import pytest

from he_runtime.errors import ModelError
from he_runtime.model import InputSpec, Node
from model_prep.graph import Graph
from model_prep.structures import Layer, layers_of


def _graph() -> Graph:
    """A grouped convolution, a 1x1 convolution whose weights two layers share, and a dense layer."""
    conv = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 2}
    point = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    nodes = (
        Node("conv", "conv2d", ("x",), (4, 3, 5), conv, {"weight": "c.w"}),
        Node("first", "conv2d", ("conv",), (4, 3, 5), point, {"weight": "p.w"}),
        Node("second", "conv2d", ("first",), (4, 3, 5), point, {"weight": "p.w"}),
        Node("flat", "reshape", ("second",), (60,)),
        Node("fc", "dense", ("flat",), (7,), {}, {"weight": "f.w", "bias": "f.b"}),
    )
    arrays = {"c.w": np.ones((4, 1, 3, 3)), "p.w": np.ones((4, 4, 1, 1)), "f.w": np.ones((7, 60)), "f.b": np.ones(7)}
    return Graph("x", (2, 3, 5), "fc", nodes, arrays)


def test_layers_of_a_graph_and_of_its_model() -> None:
    graph = _graph()
    expected = {
        "c.w": Layer("c.w", "conv2d", (4, 1, 3, 3), positions=15, groups=2),
        "p.w": Layer("p.w", "conv2d", (4, 4, 1, 1), positions=30),
        "f.w": Layer("f.w", "dense", (7, 60)),
    }
    assert layers_of(graph) == expected
    assert list(layers_of(graph)) == list(expected)
    assert layers_of(graph.to_model("m", InputSpec("x", (2, 3, 5)))) == expected
    assert {key: layer.positions for key, layer in layers_of(graph).items()} == graph.positions()


def test_the_matrix_view_has_a_row_per_filter() -> None:
    layer = Layer("w", "conv2d", (4, 3, 2, 5))
    values = np.arange(120.0).reshape(layer.shape)
    assert layer.matrix_shape == (4, 30)
    assert layer.kernel == (2, 5)
    assert np.array_equal(layer.matrix(values)[2], values[2].ravel())
    assert Layer("w", "dense", (4, 3)).kernel == (1, 1)


def test_filters_of_a_group_read_the_channels_of_the_group() -> None:
    assert Layer("w", "conv2d", (4, 2, 1, 1), groups=2).input_channels().tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]


@pytest.mark.parametrize(
    ("op", "shape", "groups"),
    [
        ("matmul", (2, 2), 1),
        ("dense", (2, 2, 2), 1),
        ("dense", (0, 2), 1),
        ("conv2d", (3, 1, 1, 1), 2),
        ("dense", (2, 2), 2),
    ],
)
def test_a_layer_that_makes_no_sense_is_refused(op: str, shape: tuple[int, ...], groups: int) -> None:
    with pytest.raises(ModelError, match="cannot prune 'w'"):
        Layer("w", op, shape, 1, groups)


def test_values_of_another_shape_are_refused() -> None:
    with pytest.raises(ModelError, match=r"got shape \(3, 2\)"):
        Layer("w", "dense", (2, 3)).matrix(np.zeros((3, 2)))
