"""Quadratic fits, their constraints, and replacement in a captured network."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model_prep.capture.capture import capture
from model_prep.polynomials.activations import ACTIVATIONS, evaluate
from model_prep.polynomials.polynomial import (
    MAX_CENTER,
    MIN_CURVATURE,
    constrain,
    fit_quadratic,
    range_penalty,
    replace_activations,
)
from model_prep.trainable import TrainableGraph

RELU = {"function": "relu"}


class TwoActivations(nn.Module):
    """One activation as a module used twice, one functional."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc1, self.fc2 = nn.Linear(48, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        x = F.gelu(self.fc1(x.flatten(1)))
        y: Tensor = self.fc2(self.relu(x))
        return y


def network() -> tuple[nn.Module, np.ndarray]:
    torch.manual_seed(0)
    return TwoActivations().eval(), np.random.default_rng(0).normal(size=(64, 1, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("std", [0.1, 1.0, 3.0])
def test_relu_under_a_centred_normal_has_the_known_fit(std: float) -> None:
    a, b, c = fit_quadratic(RELU, np.zeros(1), np.full(1, std))
    root = math.sqrt(8 * math.pi)
    # Quadrature of a kink is not exact, but it is far better than the fit itself.
    assert a[0] == pytest.approx(max(1 / (std * root), MIN_CURVATURE / std), rel=5e-3)
    assert b[0] == pytest.approx(0.5, rel=1e-9)
    assert c[0] == pytest.approx(std / root, rel=2e-2)


@pytest.mark.parametrize("mean", [0.3, -4.0, 8.0])
@pytest.mark.parametrize("function", sorted(ACTIVATIONS))
def test_no_allowed_quadratic_is_better(function: str, mean: float) -> None:
    """The fit has the least mean square error over samples among a fine grid of coefficients within the constraints."""
    std = 1.2
    x = mean + std * np.random.default_rng(0).normal(size=50_000)
    target = evaluate({"function": function}, x)
    a, b, c = (float(v[0]) for v in fit_quadratic({"function": function}, np.full(1, mean), np.full(1, std)))
    # For given a and b the best constant leaves the variance of a*x^2 + b*x - target: a form in their covariances.
    cov = np.cov(np.stack([x**2, x, target]), bias=True)
    grid_a = MIN_CURVATURE / std + np.geomspace(1e-6, 2.0, 400)[:, None]
    grid_b = 2 * grid_a * std * MAX_CENTER * np.linspace(-1, 1, 401)[None, :]
    form = [np.broadcast_to(v, np.broadcast(grid_a, grid_b).shape) for v in (grid_a, grid_b, -np.ones(1))]
    errors = sum(cov[i, j] * form[i] * form[j] for i in range(3) for j in range(3))
    fitted_error = np.mean((a * x**2 + b * x + c - target) ** 2)
    assert fitted_error <= errors.min() * 1.03 + 1e-4


@given(mean=st.floats(-20, 20), std=st.floats(1e-3, 50))
@settings(max_examples=100, deadline=None)
def test_fits_obey_the_constraints_and_keep_the_mean(mean: float, std: float) -> None:
    a, b, c = (float(v[0]) for v in fit_quadratic(RELU, np.full(1, mean), np.full(1, std)))
    assert a * std >= MIN_CURVATURE * (1 - 1e-9)
    assert abs(b / (2 * a)) <= MAX_CENTER * std * (1 + 1e-9)
    nodes, weights = np.polynomial.hermite_e.hermegauss(96)
    expected = float(evaluate(RELU, mean + std * nodes) @ weights / weights.sum())
    assert a * (mean**2 + std**2) + b * mean + c == pytest.approx(expected, rel=1e-6, abs=1e-6 * std)


def test_every_activation_is_replaced_whatever_its_form() -> None:
    module, x = network()
    captured = capture(module, x[:2])
    assert [n.attrs["function"] for n in captured.activations()] == ["relu", "gelu", "relu"]
    graph, sites = replace_activations(captured, x)
    assert not graph.activations() and len(sites) == 3
    assert sorted({n.op for n in graph.nodes}) == ["conv2d", "dense", "quadratic", "reshape"]


def test_the_trainable_graph_equals_the_module_and_blends() -> None:
    module, x = network()
    captured = capture(module, x[:2])
    graph, sites = replace_activations(captured, x)
    inputs = torch.from_numpy(x)
    with torch.no_grad():
        original = module(inputs)
        net = TrainableGraph(graph, sites)
        assert torch.allclose(TrainableGraph(captured)(inputs), original, atol=1e-6)
        polynomial = net(inputs)
        net.blend = 0.0
        assert torch.allclose(net(inputs), original, atol=1e-6)
    spread = float(original.std())
    assert 1e-4 < float((polynomial - original).abs().mean()) < 0.5 * spread + 0.1


def test_trained_units_are_undone_on_the_way_back() -> None:
    module, x = network()
    graph, sites = replace_activations(capture(module, x[:2]), x * 5)
    back = TrainableGraph(graph, sites).to_graph()
    for key, values in graph.arrays.items():
        assert np.allclose(back.arrays[key], values, rtol=1e-5, atol=1e-7), key


def test_constrain_brings_coefficients_back() -> None:
    module, x = network()
    graph, sites = replace_activations(capture(module, x[:2]), x)
    net = TrainableGraph(graph, sites)
    arrays = net.graph.node(next(iter(sites))).arrays
    with torch.no_grad():
        net.parameter(arrays["a"]).fill_(-3.0)
        net.parameter(arrays["b"]).fill_(100.0)
    constrain(net)
    assert bool((net.parameter(arrays["a"]) == MIN_CURVATURE).all())
    assert bool((net.parameter(arrays["b"]) <= 2 * MAX_CENTER * MIN_CURVATURE + 1e-6).all())


def test_the_range_penalty_grows_with_the_inputs() -> None:
    module, x = network()
    graph, sites = replace_activations(capture(module, x[:2]), x)
    net = TrainableGraph(graph, sites)
    net(torch.from_numpy(x))
    inside = float(range_penalty(net, 6).detach())
    net(torch.from_numpy(x * 4))
    assert 0 < inside < 3 and float(range_penalty(net, 6).detach()) > 100 * inside


def test_squares_of_the_user_are_not_trained() -> None:
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.square(self.fc(x))

    graph = capture(Squared(), torch.randn(2, 4))
    net = TrainableGraph(graph)
    trained = {key for key in graph.arrays if net.parameter(key).requires_grad}
    assert trained == {"fc.weight", "fc.bias"}
