"""Activations replaced by polynomials of any degree, trained, folded and exported."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from he_runtime.errors import ModelError
from he_runtime.model import InputSpec
from he_runtime.reference import forward
from model_prep.capture.capture import capture
from model_prep.folding.folding import fold
from model_prep.graph import Graph
from model_prep.polynomials.activations import ACTIVATIONS, evaluate
from model_prep.polynomials.approximation import fit_chebyshev, fit_line, replace_progressively, replace_sites
from model_prep.polynomials.merging import simplified
from model_prep.polynomials.polynomial import constrain, range_penalty
from model_prep.settings import Training
from model_prep.train import Hooks, fit
from model_prep.trainable import TrainableGraph


class Small(nn.Module):
    """Sites "relu", "silu", "gelu" and "tanh": two on images, two on vectors, a batch norm on each side of one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, stride=2)
        self.before, self.after = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = self.after(F.silu(self.before(self.conv2(x))))
        x = F.gelu(self.fc1(x.flatten(1)))
        y: Tensor = self.fc3(torch.tanh(self.fc2(x)))
        return y


@lru_cache
def network() -> tuple[Graph, np.ndarray]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Small()
        for weight in (p for p in module.parameters() if p.ndim > 1):
            nn.init.normal_(weight, std=2.0 * weight[0].numel() ** -0.5)  # inputs far from where activations are lines
        for layer in (module.before, module.after):
            nn.init.uniform_(layer.weight, -1.5, 1.5)
            nn.init.uniform_(layer.running_mean, -0.5, 0.5)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    x = np.random.default_rng(0).normal(size=(96, 1, 6, 6)).astype(np.float32)
    return capture(module.eval(), x[:2]), x


DEGREES = {"relu": 7, "silu": 3, "gelu": 15, "tanh": 0}


def distil(graph: Graph, x: np.ndarray, epochs: int = 2):  # type: ignore[no-untyped-def]
    """A `Train`: distillation from the network as it was."""
    teacher = TrainableGraph(graph)

    def train(net: TrainableGraph, label: str = "") -> None:
        hooks = Hooks(after_step=lambda: constrain(net), penalty=lambda: 1e-3 * range_penalty(net, 6))
        settings = Training(epochs=epochs, learning_rate=2e-3, batch_size=16, distillation=1.0)
        fit(net, x, np.zeros(len(x), np.int64), settings, seed=1, teacher=teacher, hooks=hooks, quiet=True)

    return train


def distance(graph: Graph, net: TrainableGraph, x: np.ndarray) -> float:
    with torch.no_grad():
        expected, got = (F.log_softmax(n.eval()(torch.from_numpy(x)), 1) for n in (TrainableGraph(graph), net))
        return float(F.kl_div(got, expected, reduction="batchmean", log_target=True))


@pytest.mark.parametrize("degree", [3, 7, 15])
@pytest.mark.parametrize("function", sorted(ACTIVATIONS))
def test_a_fit_beats_every_change_of_its_coefficients(function: str, degree: int) -> None:
    """Where all samples lie in their cells' centers the weighted error is the mean square over the samples."""
    u = np.cos((np.arange(512) + 0.5) * np.pi / 512)
    rng = np.random.default_rng(degree)
    samples = 1.0 + 4.0 * rng.choice(u, size=4000)[None]
    low, high = np.array([-3.0]), np.array([5.0])
    found = fit_chebyshev({"function": function}, samples, low, high, degree, spread=0.0)[0]
    target = evaluate({"function": function}, samples[0])
    basis = np.polynomial.chebyshev.chebvander((samples[0] - 1.0) / 4.0, degree)
    error = np.mean((basis @ found - target) ** 2)
    for _ in range(20):
        assert np.mean((basis @ (found + 1e-3 * rng.normal(size=degree + 1)) - target) ** 2) > error
    assert error < 0.1 * target.var()


def test_the_uniform_fit_reproduces_polynomials_and_orders_degrees() -> None:
    x = np.linspace(-4, 4, 2000)[None]
    errors = []
    for degree in (3, 4, 7, 15):
        c = fit_chebyshev({"function": "silu"}, x, np.array([-4.0]), np.array([4.0]), degree)[0]
        errors.append(np.abs(np.polynomial.chebyshev.chebval(x[0] / 4, c) - evaluate({"function": "silu"}, x[0])).max())
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3
    # On one side of its kink ReLU is a line.
    c = fit_chebyshev({"function": "relu"}, x / 4 + 3, np.array([1.0]), np.array([5.0]), 7)[0]
    assert np.allclose(c, [3.0, 2.0, 0, 0, 0, 0, 0, 0], atol=1e-9)
    sides = np.stack([x[0] + 8, x[0] - 8])
    slope, shift = fit_line(sides, evaluate({"function": "relu"}, sides))
    assert np.allclose(slope, [1, 0], atol=1e-6) and np.allclose(shift, 0, atol=1e-6)


def test_any_mixture_of_degrees_is_what_the_artifact_computes() -> None:
    graph, x = network()
    replaced, sites = replace_sites(graph, x, DEGREES)
    assert [n.op for n in replaced.nodes if n.name in DEGREES] == ["polynomial"] * 3 + ["affine"]
    net = TrainableGraph(replaced, sites)
    before = distance(graph, net, x)
    distil(graph, x)(net)
    assert distance(graph, net, x) < before
    # float64 from here on: what is compared is the meaning, not float32's rounding.
    trained = TrainableGraph(net.to_graph(), sites).double().eval()
    folded = fold(net.to_graph())
    assert {n.op for n in folded.nodes} == {"conv2d", "dense", "reshape", "polynomial"}
    with torch.no_grad():
        exact = TrainableGraph(net.to_graph(), {}).double()(torch.from_numpy(x).double()).numpy()
        assert np.abs(trained(torch.from_numpy(x).double()).numpy() - exact).max() < 1e-12
    got = forward(folded.to_model("m", InputSpec("", (1, 6, 6))), x.astype(np.float64))
    assert np.abs(got - net(torch.from_numpy(x)).detach().numpy()).max() < 1e-4
    assert np.abs(got - exact).max() < 1e-6


def test_higher_degrees_are_nearer_to_the_network() -> None:
    graph, x = network()
    found = []
    for degree in (2, 4, 8, 15):  # a line may do better than a quadratic, whose curvature has a least value
        replaced, sites = replace_sites(graph, x, dict.fromkeys(DEGREES, degree))
        found.append(distance(graph, TrainableGraph(replaced, sites), x))
    assert found == sorted(found, reverse=True) and found[-1] < 0.05 * found[0]


def test_a_simplified_network_computes_the_same_and_trains_on() -> None:
    graph, x = network()
    replaced, sites = replace_sites(graph, x, {"relu": 2, "silu": 7, "gelu": 0, "tanh": 2})
    net = TrainableGraph(replaced, sites).eval()
    simple = simplified(net, x).eval()
    assert set(simple.sites) == {"relu", "silu", "tanh"} and sum(n.op == "dense" for n in simple.graph.nodes) == 2
    inputs = torch.from_numpy(x)
    with torch.no_grad():
        assert torch.allclose(simple(inputs), net(inputs), rtol=1e-3, atol=1e-3)
    before = distance(graph, simple, x)
    distil(graph, x)(simple)
    assert distance(graph, simple, x) < before


def test_sites_not_named_stay_and_removal_leaves_nothing() -> None:
    graph, x = network()
    replaced, sites = replace_sites(graph, x, {"relu": 0, "tanh": 0}, line=False)
    assert [n.name for n in replaced.activations()] == ["silu", "gelu"]
    assert not sites and len(replaced.nodes) == len(graph.nodes) - 2


def test_blending_starts_from_the_activations_at_every_degree() -> None:
    graph, x = network()
    replaced, sites = replace_sites(graph, x, DEGREES)
    net = TrainableGraph(replaced, sites)
    inputs = torch.from_numpy(x)
    with torch.no_grad():
        original, polynomial = TrainableGraph(graph)(inputs), net.eval()(inputs)
        net.blend = 0.0
        assert torch.allclose(net(inputs), original, atol=1e-6)
        net.blend = 0.5
        assert not torch.allclose(net(inputs), original, atol=1e-3)
    assert float((polynomial - original).abs().max()) > 1e-3


def test_training_clips_to_the_interval_and_the_penalty_sees_beyond_it() -> None:
    graph, x = network()
    replaced, sites = replace_sites(graph, x, {"relu": 7})
    net = TrainableGraph(replaced, sites)
    inputs = torch.from_numpy(x)
    inside = net.train()(inputs), float(range_penalty(net, 6).detach())
    assert torch.allclose(inside[0], net.eval()(inputs), atol=1e-5)
    far, penalty = net.train()(3 * inputs), float(range_penalty(net, 6).detach())
    assert not torch.allclose(far, net.eval()(3 * inputs), rtol=0.1)
    assert penalty > 50 * inside[1] > 0


def test_one_after_the_other_is_trained_each_time_and_ends_nearer() -> None:
    graph, x = network()
    order: list[str] = []
    step = distil(graph, x)

    def train(net: TrainableGraph, label: str) -> None:
        order.append(label)
        assert len(net.graph.activations()) == len(DEGREES) - len(order)
        step(net, label)

    replaced, sites = replace_progressively(graph, x, dict.fromkeys(DEGREES, 2), train)
    at_once, plain = replace_sites(graph, x, dict.fromkeys(DEGREES, 2))
    assert order == ["relu", "silu", "gelu", "tanh"] and set(sites) == set(DEGREES)
    assert distance(graph, TrainableGraph(replaced, sites), x) < 0.5 * distance(
        graph, TrainableGraph(at_once, plain), x
    )


@pytest.mark.parametrize(("degrees", "what"), [({"nobody": 2}, "nobody"), ({"relu": -1}, "-1"), ({"relu": 999}, "999")])
def test_bad_degrees_are_refused(degrees: dict[str, int], what: str) -> None:
    graph, x = network()
    with pytest.raises(ModelError, match=what):
        replace_sites(graph, x, degrees)
    with pytest.raises(ModelError, match=what):
        replace_progressively(graph, x, degrees, lambda *_: None)


def test_high_degrees_share_the_interval_of_all_channels_and_still_differ_per_channel() -> None:
    graph, x = network()
    for degree, per_channel in ((8, True), (9, False)):
        replaced, _ = replace_sites(graph, x, {"relu": degree})
        node = replaced.node("relu")
        assert np.ndim(node.attrs["low"]) == per_channel
        assert replaced.array(node, "coefficients").shape == (3, degree + 1)
        conv = next(n for n in graph.nodes if n.name == node.inputs[0])
        with torch.no_grad():
            seen = F.conv2d(torch.from_numpy(x), torch.as_tensor(graph.arrays[conv.arrays["weight"]]), padding=1)
        seen = seen + torch.as_tensor(graph.arrays[conv.arrays["bias"]])[:, None, None]
        widest = float((seen.amax((0, 2, 3)) - seen.amin((0, 2, 3))).max() if per_channel else seen.max() - seen.min())
        width = np.max(np.asarray(node.attrs["high"]) - np.asarray(node.attrs["low"]))
        assert width == pytest.approx(1.1 * widest, rel=1e-4)
