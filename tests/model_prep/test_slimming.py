"""Physical removal of channels against the network that reads zero in their place, and the choice of what goes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from he_runtime.errors import ModelError, Reason
from he_runtime.model import InputSpec, Node
from he_runtime.reference import forward
from model_prep.capture import capture
from model_prep.graph import Graph, weight_keys
from model_prep.masks import Bools
from model_prep.networks import build
from model_prep.polynomial import replace_activations
from model_prep.selection import select_channels
from model_prep.slimming import removable, resolve, slim, slim_net
from model_prep.trainable import TrainableGraph

SHAPE = (2, 6, 6)


class Gated(nn.Module):
    """A network that reads `gates[layer]` (channels,), zeros and ones, times that layer's channels before the next."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, Tensor] = {}

    def gate(self, layer: str, x: Tensor) -> Tensor:
        found = self.gates.get(layer)
        return x if found is None else x * found.reshape((-1,) + (1,) * (x.ndim - 2))


def bent(x: Tensor) -> Tensor:
    """A quadratic that is not zero at zero."""
    return 0.3 * x * x + 0.5 * x + 0.7


class Plain(Gated):
    """Convolutions with batch norms, a pool, a flatten of blocks of columns, two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.c2, self.b2 = nn.Conv2d(5, 7, 3, stride=2, padding=1), nn.BatchNorm2d(7)
        self.f1, self.f2 = nn.Linear(7 * 4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate("c1", bent(self.b1(self.c1(x))))
        x = self.gate("c2", F.avg_pool2d(bent(self.b2(self.c2(x))), 2, stride=1))
        x = self.gate("f1", bent(self.f1(x.flatten(1))))
        y: Tensor = self.f2(x)
        return y


class Residual(Gated):
    """Two branches add up: the sum keeps the union, and the second sum ties four layers."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.c3, self.skip = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.b3, self.f = nn.BatchNorm2d(6), nn.Linear(6 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate("c1", bent(self.c1(x)))
        inner = self.gate("c2", bent(self.c2(x)))
        total = self.gate("c3", bent(self.b3(self.c3(inner)) + x))
        y = self.gate("c3", self.skip(total) + total)
        z: Tensor = self.f(y.flatten(1))
        return z


class Joined(Gated):
    """A concatenation, one part of which is the input; then a product of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
        self.left, self.right = nn.Conv2d(9, 5, 3), nn.Conv2d(9, 5, 3)
        self.f = nn.Linear(5 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.gate("c1", bent(self.c1(x))), x, self.gate("c2", bent(self.c2(x)))], 1)
        y = self.gate("left", bent(self.left(both)) * bent(self.right(both)))
        z: Tensor = self.f(y.flatten(1))
        return z


class Depthwise(Gated):
    """Depthwise with a multiplier of two, then a convolution of two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(2, 6, 1)
        self.depth, self.point = nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.Conv2d(12, 4, 1)
        self.pairs, self.f = nn.Conv2d(4, 6, 3, groups=2), nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate("c1", bent(self.c1(x)))
        x = self.gate("depth", bent(self.depth(x)))
        x = self.gate("point", bent(self.point(x)))
        x = self.gate("pairs", bent(self.pairs(x)))
        y: Tensor = self.f(x.flatten(1))
        return y


class Unflattened(Gated):
    """Features of a dense layer become an image: those of one channel are one unit. A layer is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.f1, self.twice = nn.Linear(72, 5 * 9), nn.Conv2d(5, 5, 3, padding=1)
        self.f2 = nn.Linear(5 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate("f1", bent(self.f1(x.flatten(1)))).reshape(-1, 5, 3, 3)
        for _ in range(2):
            x = self.gate("twice", bent(self.twice(x)))
        y: Tensor = self.f2(x.flatten(1))
        return y


NETWORKS: list[type[Gated]] = [Plain, Residual, Joined, Depthwise, Unflattened]


@cache
def network(kind: type[Gated]) -> tuple[Gated, Graph]:
    """A network in double precision whose batch norms have statistics of their own, and its graph."""
    torch.manual_seed(7)
    module = kind().double()
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.normal_(child.weight)
            nn.init.normal_(child.bias)
            nn.init.normal_(child.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(child.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    module.eval()
    return module, capture(module, torch.zeros(1, *SHAPE, dtype=torch.float64))


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


def test_the_lowest_scores_go_wherever_they_are() -> None:
    scores = {"a": np.array([5.0, 0.1, 3.0, 0.2]), "b": np.array([0.3, 9.0, 0.4, 8.0, 7.0, 6.0])}
    keep = select_channels(scores, 0.4)
    assert np.flatnonzero(~keep["a"]).tolist() == [1, 3] and np.flatnonzero(~keep["b"]).tolist() == [0, 2]


def test_a_weak_layer_keeps_its_strongest_and_the_count_is_exact() -> None:
    scores = {"weak": np.array([0.1, 0.3, 0.2]), "strong": np.arange(20.0) + 1}
    keep = select_channels(scores, 0.5)
    assert keep["weak"].tolist() == [False, True, False]
    assert sum(int((~k).sum()) for k in keep.values()) == int(0.5 * 23)
    wide = select_channels({"wide": np.arange(40.0), "other": np.full(60, 100.0)}, 0.39, limit=0.95)
    assert np.flatnonzero(wide["wide"]).tolist() == [38, 39] and wide["other"].sum() == 59


def test_ties_keep_the_lower_index() -> None:
    keep = select_channels({"a": np.ones(3), "b": np.ones(3)}, 0.5)
    assert keep["a"].tolist() == [True, True, False] and keep["b"].tolist() == [True, False, False]


def test_what_is_not_removable_neither_goes_nor_counts() -> None:
    scores = {"a": np.zeros(4), "b": np.arange(1.0, 5.0)}
    keep = select_channels(scores, 0.5, removable={"a": np.zeros(4, dtype=bool), "b": np.ones(4, dtype=bool)})
    assert keep["a"].all() and keep["b"].tolist() == [False, False, True, True]


def test_impossible_ratios_name_the_nearest() -> None:
    scores = {"a": np.arange(4.0), "b": np.arange(4.0)}
    with pytest.raises(ModelError, match=r"try a ratio of 0\.75$"):
        select_channels(scores, 0.9)
    keep = select_channels(scores, 0.75)
    assert all(k.tolist() == [False, False, False, True] for k in keep.values())
    for wrong in (-0.1, 1.0):
        with pytest.raises(ModelError, match="0 <= ratio < 1"):
            select_channels(scores, wrong)
    with pytest.raises(ModelError, match="finite"):
        select_channels({"a": np.array([1.0, np.nan])}, 0.5)
    with pytest.raises(ModelError, match="no scores"):
        select_channels({}, 0.5)
