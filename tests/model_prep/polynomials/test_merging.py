"""Linear layers in a row merged exactly, and only where they may be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from he_runtime.model import InputSpec, Node
from he_runtime.reference import forward
from model_prep.capture.capture import capture
from model_prep.graph import Graph
from model_prep.polynomials.merging import merge_linear, planned_ms


def captured(module: nn.Module, shape: tuple[int, ...]) -> tuple[Graph, np.ndarray]:
    x = np.random.default_rng(1).normal(size=(3, *shape))
    return capture(module.double().eval(), x[:2]), x


def seeded(build):  # type: ignore[no-untyped-def]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def value(graph: Graph, x: np.ndarray) -> np.ndarray:
    return forward(graph.to_model("m", InputSpec("", graph.input_shape)), x)


def merged_equals(graph: Graph, x: np.ndarray) -> Graph:
    merged = merge_linear(graph)
    assert np.abs(value(merged, x) - value(graph, x)).max() < 1e-9
    return merged


def test_dense_layers_become_one() -> None:
    graph, x = captured(
        seeded(lambda: nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 6, bias=False), nn.Linear(6, 4))), (5,)
    )
    merged = merged_equals(graph, x)
    assert [n.op for n in merged.nodes] == ["dense"] and len(merged.arrays) == 2
    assert merged.arrays[merged.nodes[0].arrays["weight"]].shape == (4, 5)


def test_a_convolution_and_a_dense_layer_become_a_dense_layer() -> None:
    build = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(2, 3, 3, stride=2, padding=1, groups=1), nn.Flatten(), nn.Linear(27, 4)
    )
    graph, x = captured(seeded(build), (2, 5, 5))
    merged = merged_equals(graph, x)
    assert [n.op for n in merged.nodes] == ["reshape", "dense"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kernels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    paddings=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (4, 2)]),
    bias=st.booleans(),
)
def test_convolutions_merge_exactly_or_not_at_all(
    kernels: tuple[int, int],
    strides: tuple[int, int],
    paddings: tuple[int, int],
    dilations: tuple[int, int],
    groups: tuple[int, int],
    bias: bool,
) -> None:
    rng, nodes, arrays, shape = np.random.default_rng(0), [], {}, (4, 9, 9)
    for i, channels in enumerate((8, 2)):
        extent = (shape[1] + 2 * paddings[i] - dilations[i] * (kernels[i] - 1) - 1) // strides[i] + 1
        arrays[f"w{i}"] = rng.normal(size=(channels, shape[0] // groups[i], kernels[i], kernels[i]))
        arrays[f"b{i}"] = rng.normal(size=channels)
        keys = {"weight": f"w{i}", "bias": f"b{i}"} if bias else {"weight": f"w{i}"}
        settings = {"stride": strides[i], "padding": paddings[i], "dilation": dilations[i]}
        attrs = {key: [v, v] for key, v in settings.items()} | {"groups": groups[i]}
        shape = (channels, extent, extent)
        nodes.append(Node(f"conv{i}", "conv2d", (("x", "conv0")[i],), shape, attrs, keys))
    used = {k: arrays[k] for n in nodes for k in n.arrays.values()}
    graph = Graph("x", (4, 9, 9), "conv1", tuple(nodes), used)
    merged = merged_equals(graph, rng.normal(size=(2, 4, 9, 9)))
    if not paddings[1]:  # nothing of the border can stand in the way; sizes may, where a stride skips the last rows
        assert len(merged.nodes) == 1 or strides[0] == 2
    elif bias or (paddings[0] < dilations[0] * (kernels[0] - 1) - strides[0] + 1):
        assert len(merged.nodes) == 2


def test_a_pointwise_convolution_merges_into_a_padded_one() -> None:
    build = lambda: nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.Conv2d(5, 2, 3, padding=1))  # noqa: E731
    graph, x = captured(seeded(build), (3, 6, 6))
    assert len(merged_equals(graph, x).nodes) == 1


def test_a_value_read_twice_stays() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.c(self.b(y)) + y

    graph, x = captured(seeded(Forked), (4,))
    assert [n.op for n in merged_equals(graph, x).nodes] == ["dense", "dense", "add"]


def test_a_module_used_twice_keeps_its_weights_where_it_is_not_merged() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(torch.square(self.b(self.a(x))))

    graph, x = captured(seeded(Twice), (4,))
    merged = merged_equals(graph, x)
    assert [n.op for n in merged.nodes] == ["dense", "quadratic", "dense"]


@pytest.mark.parametrize("dearer", [False, True])
def test_a_merge_that_costs_more_is_left(dearer: bool) -> None:
    graph, _ = captured(seeded(lambda: nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 4))), (5,))
    merged = merge_linear(graph, lambda g: float(len(g.nodes)) * (-1 if dearer else 1))
    assert len(merged.nodes) == (2 if dearer else 1)


def test_the_planned_cost_decides_on_real_plans() -> None:
    """A wide layer after a narrow one: merged or not, what is kept is never planned dearer."""
    build = lambda: nn.Sequential(nn.Linear(32, 4), nn.Linear(4, 32))  # noqa: E731
    graph, x = captured(seeded(build), (32,))
    cost = planned_ms(np.repeat(x, 8, axis=0).astype(np.float32))
    assert 0 < cost(merge_linear(graph, cost)) <= cost(graph)
