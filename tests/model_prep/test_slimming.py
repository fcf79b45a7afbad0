"""Physical removal of channels against the network that reads zero in their place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from he_runtime.errors import ModelError, Reason
from he_runtime.model import InputSpec, Node
from he_runtime.reference import forward
from model_prep.capture.capture import capture
from model_prep.channels.slimming import kept_weights, removable, resolve, slim, slim_net
from model_prep.graph import Graph, weight_keys
from model_prep.masks import Bools
from model_prep.networks import build
from model_prep.polynomials.polynomial import replace_activations
from model_prep.trainable import TrainableGraph
from tests.model_prep.channel_networks import NETWORKS, SHAPE, Depthwise, Gated, Plain, Residual, network


def layer_of(key: str) -> str:
    """The module's name in a weight array's name."""
    return key.split(".")[0]


def inputs(seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(4, *SHAPE)))


def evaluate(graph: Graph, x: Tensor) -> np.ndarray:
    return forward(graph.to_model("slim", InputSpec("x", graph.input_shape)), x.numpy())


def random_keep(graph: Graph, rng: np.random.Generator, share: float) -> dict[str, Bools]:
    keep = {key: rng.random(len(graph.arrays[key])) < share for key in weight_keys(graph)}
    for wanted in keep.values():
        wanted[rng.integers(len(wanted))] = True
    return keep


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", NETWORKS, ids=lambda k: k.__name__)
def test_the_slim_network_computes_what_reading_zeros_computes(kind: type[Gated], seed: int) -> None:
    module, graph = network(kind)
    x = inputs(seed)
    keep = random_keep(graph, np.random.default_rng(seed), share=(0.3, 0.6)[seed % 2])
    stays = resolve(graph, keep)
    module.gates = {layer_of(key): torch.from_numpy(stays[key].astype(float)) for key in stays}
    expected = module(x).detach().numpy()
    module.gates = {}
    got = slim(graph, keep)
    assert np.abs(evaluate(got, x) - expected).max() <= 1e-9 * max(1.0, np.abs(expected).max())
    for key, wanted in stays.items():
        assert (wanted >= keep[key]).all()
        assert len(got.arrays[key]) == wanted.sum()


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda k: k.__name__)
def test_kept_weights_are_those_that_are_left_in_order(kind: type[Gated]) -> None:
    _, graph = network(kind)
    keep = random_keep(graph, np.random.default_rng(3), share=0.5)
    left, got = kept_weights(graph, keep), slim(graph, keep)
    assert set(left) == set(weight_keys(graph))
    for key, flags in left.items():
        assert flags.shape == np.shape(graph.arrays[key])
        assert np.array_equal(np.asarray(graph.arrays[key])[flags], np.ravel(got.arrays[key]))


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda k: k.__name__)
def test_keeping_everything_changes_nothing(kind: type[Gated]) -> None:
    _, graph = network(kind)
    same = slim(graph, {})
    assert same.nodes == graph.nodes
    assert all(np.array_equal(same.arrays[key], graph.arrays[key]) for key in graph.arrays)


def keys(graph: Graph) -> dict[str, str]:
    """Module name -> weight array."""
    return {layer_of(key): key for key in weight_keys(graph)}


def bools(count: int, *kept: int) -> Bools:
    return np.isin(np.arange(count), kept)


def test_shapes_are_those_of_a_network_built_small() -> None:
    _, graph = network(Plain)
    named = keys(graph)
    keep = {named["c1"]: bools(5, 0, 4), named["c2"]: bools(7, 1, 2, 6), named["f1"]: bools(6, 5)}
    got = slim(graph, keep)
    shapes = {name: np.shape(got.arrays[key]) for name, key in named.items()}
    assert shapes == {"c1": (2, 2, 3, 3), "c2": (3, 2, 3, 3), "f1": (1, 12), "f2": (3, 1)}
    columns = [c * 4 + i for c in (1, 2, 6) for i in range(4)]
    assert np.array_equal(got.arrays[named["f1"]], graph.arrays[named["f1"]][[5]][:, columns])
    assert all(np.size(got.arrays[key]) <= 3 for n in got.nodes if n.op == "quadratic" for key in n.arrays.values())
    assert got.shape_of(got.output) == (3,)
    counts = {name: np.prod(shape) for name, shape in shapes.items()}
    assert counts["c2"] * 7 * 5 == np.size(graph.arrays[named["c2"]]) * 3 * 2


def test_a_sum_keeps_the_union_of_its_branches() -> None:
    _, graph = network(Residual)
    named = keys(graph)
    keep = {named["c1"]: bools(6, 0), named["c3"]: bools(6, 3), named["skip"]: bools(6, 3, 5)}
    stays = resolve(graph, keep)
    for name in ("c1", "c3", "skip"):
        assert np.flatnonzero(stays[named[name]]).tolist() == [0, 3, 5]
    assert stays[named["c2"]].all()


def test_groups_go_as_a_whole() -> None:
    _, graph = network(Depthwise)
    named = keys(graph)
    keep = {named["c1"]: bools(6, 1), named["depth"]: bools(12, 3, 8), named["point"]: bools(4, 0)}
    keep[named["pairs"]] = bools(6, 2)
    stays = resolve(graph, keep)
    assert np.flatnonzero(stays[named["c1"]]).tolist() == [1, 4]
    assert np.flatnonzero(stays[named["depth"]]).tolist() == [2, 3, 8, 9]
    assert np.flatnonzero(stays[named["point"]]).tolist() == [0, 1]
    assert np.flatnonzero(stays[named["pairs"]]).tolist() == [0, 1, 2]
    got = slim(graph, keep)
    assert [n.attrs["groups"] for n in got.nodes if n.op == "conv2d"] == [1, 2, 1, 1]


def test_input_and_output_channels_stay() -> None:
    class Sum(nn.Module):
        """What is added to the input or to the output stays; only the layer between may go."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x) + x
            y: Tensor = torch.square(self.c(torch.square(self.b(x)))) + x
            return y

    graph = capture(Sum(), torch.zeros(1, 4))
    may_go = {layer_of(key): flags.tolist() for key, flags in removable(graph).items()}
    assert may_go == {"a": [False] * 4, "b": [True] * 6, "c": [False] * 4}
    nothing = {key: np.zeros(len(graph.arrays[key]), dtype=bool) for key in weight_keys(graph)}
    nothing[keys(graph)["b"]][2] = True
    stays = resolve(graph, nothing)
    assert {layer_of(key): int(flags.sum()) for key, flags in stays.items()} == {"a": 4, "b": 1, "c": 4}


def test_what_a_matrix_product_mixes_stays() -> None:
    """A dense layer on sequences, and a product of two of them: channels are no longer what a layer's rows are."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(15, 4)), "q": rng.normal(size=(6, 5)), "f": rng.normal(size=(2, 9))}
    nodes = (
        Node("a", "dense", ("x",), (15,), {}, {"weight": "w"}),
        Node("sequence", "reshape", ("a",), (3, 5)),
        Node("q1", "dense", ("sequence",), (3, 6), {}, {"weight": "q"}),
        Node("scores", "matmul", ("q1", "q1"), (3, 3), {"transpose_right": True}),
        Node("flat", "reshape", ("scores",), (9,)),
        Node("b", "dense", ("flat",), (2,), {}, {"weight": "f"}),
    )
    graph = Graph("x", (4,), "b", nodes, arrays)
    assert not any(flags.any() for flags in removable(graph).values())
    got = slim(graph, {key: np.arange(len(w)) == 0 for key, w in arrays.items()})
    assert all(np.array_equal(got.arrays[key], arrays[key]) for key in arrays)


def test_wrong_requests_are_refused() -> None:
    _, graph = network(Plain)
    key = keys(graph)["c1"]
    with pytest.raises(ModelError, match="need some of"):
        slim(graph, {"nothing": bools(5, 0)})
    with pytest.raises(ModelError, match="need \\(5,\\)"):
        slim(graph, {key: bools(4, 0)})
    with pytest.raises(ModelError, match="at least one in every layer"):
        slim(graph, {key: bools(5)})
    strange = Node("s", "softmax", (graph.output,), (3,))
    with pytest.raises(ModelError, match="softmax") as caught:
        slim(Graph(graph.input_name, graph.input_shape, "s", (*graph.nodes, strange), graph.arrays), {})
    assert caught.value.reason is Reason.MODEL_UNSUPPORTED


def polynomial_graph(attrs: dict[str, object], coefficients: np.ndarray) -> Graph:
    """dense(3 -> 4), a polynomial, dense(4 -> 2)."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(4, 3)), "c": coefficients, "v": rng.normal(size=(2, 4))}
    nodes = (
        Node("a", "dense", ("x",), (4,), {}, {"weight": "w"}),
        Node("p", "polynomial", ("a",), (4,), {"basis": "power", **attrs}, {"coefficients": "c"}),
        Node("b", "dense", ("p",), (2,), {}, {"weight": "v"}),
    )
    return Graph("x", (3,), "b", nodes, arrays)


@pytest.mark.parametrize("shared", [True, False])
def test_polynomials_lose_their_rows(shared: bool) -> None:
    """One row of coefficients for all channels stays whole, even if it has as many entries as there are channels."""
    rng = np.random.default_rng(1)
    coefficients = rng.normal(size=4 if shared else (4, 3))
    ends = {"low": -2.0, "high": 2.0} if shared else {"low": [-2.0, -3.0, -4.0, -5.0], "high": [2.0, 3.0, 4.0, 5.0]}
    graph = polynomial_graph(ends, coefficients)
    got = slim(graph, {"w": bools(4, 1, 2)})
    assert got.arrays["c"].shape == ((4,) if shared else (2, 3))
    assert got.node("p").attrs["low"] == (-2.0 if shared else [-3.0, -4.0])
    readers = graph.arrays["v"] * bools(4, 1, 2)
    x = torch.from_numpy(rng.normal(size=(5, 3)))
    zeroed = Graph("x", (3,), "b", graph.nodes, {**graph.arrays, "v": readers})
    assert np.abs(evaluate(got, x) - evaluate(zeroed, x)).max() < 1e-12


def test_a_network_in_training_keeps_its_sites_and_masks() -> None:
    x = np.random.default_rng(0).normal(size=(32, 1, 8, 8)).astype(np.float32)
    graph, sites = replace_activations(capture(build("digits-cnn", 3), x[:2]), x)
    net = TrainableGraph(graph, sites)
    named = {layer_of(key): key for key in weight_keys(graph)}
    net.masks = {named["conv2"]: torch.rand(16, 8, 3, 3) < 0.5}
    net.blend = 0.25
    keep = {named["conv1"]: bools(8, 0, 3, 4, 7), named["conv2"]: bools(16, *range(0, 16, 2))}
    slimmed = slim_net(net, keep)
    assert slimmed.blend == 0.25 and slimmed.masks[named["conv2"]].shape == (8, 4, 3, 3)
    assert [len(site.unit) for site in slimmed.sites.values()] == [4, 8]
    with torch.no_grad():
        for key, axis, kept in ((named["conv2"], 1, keep[named["conv1"]]), (named["fc"], 1, keep[named["conv2"]])):
            weight = net.parameter(key)
            columns = np.repeat(kept, weight.shape[axis] // len(kept))
            weight *= torch.from_numpy(columns.astype(np.float32)).reshape((1, -1) + (1,) * (weight.ndim - 2))
        images = torch.from_numpy(x)
        assert (slimmed(images) - net(images)).abs().max() < 1e-5
