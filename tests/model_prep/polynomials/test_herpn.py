"""HerPN: captured as the quadratic that it is in evaluation, trainable from scratch."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from he_runtime import compile
from he_runtime.reference import forward
from model_prep import Recipe, compress, export
from model_prep.capture.capture import capture
from model_prep.polynomials.herpn import HerPN


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act1 = nn.Conv2d(1, 4, 3, bias=False), HerPN(4)
        self.fc1, self.act2, self.fc2 = nn.Linear(64, 8), HerPN(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.conv(x)).flatten(1)
        y: Tensor = self.fc2(self.act2(self.fc1(x)))
        return y


@lru_cache
def training() -> tuple[Net, Tensor, list[float]]:
    """A few steps on a separable task: norms, gains and offsets all moved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x = Net(), torch.randn(192, 1, 6, 6)
        for layer in (net.act1, net.act2):
            nn.init.uniform_(layer.gamma, -1.5, 1.5)
            nn.init.uniform_(layer.beta, -0.5, 0.5)
    y = (x[:, 0, :3].mean((1, 2)) > 0).long() + (x[:, 0, 3:].mean((1, 2)) > 0).long()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return net.eval(), x, losses


def trained() -> tuple[Net, Tensor, list[float]]:
    return deepcopy(training())


def test_it_trains_from_scratch() -> None:
    _, _, losses = trained()
    assert losses[-1] < 0.3 * losses[0]


def test_the_artifact_equals_the_module_in_evaluation() -> None:
    net, x, _ = trained()
    graph = capture(net, x[:2])
    assert [n.op for n in graph.nodes] == ["conv2d", "quadratic", "reshape", "dense", "quadratic", "dense"]
    model = export(net, x[:2])
    with torch.no_grad():
        expected = net.double()(x.double()).numpy()
    got = forward(model, x.double().numpy())
    assert np.abs(got - expected).max() < 1e-6  # export reads float32 weights
    squares = [n for n in model.nodes if n.op == "quadratic"]
    assert all((model.array(n, "a") == 1).all() and not model.array(n, "b").any() for n in squares)


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3, 3)])
def test_quadratic_is_the_module(shape: tuple[int, ...]) -> None:
    net, _, _ = trained()
    a, b, c = (torch.from_numpy(v).reshape((-1,) + (1,) * (len(shape) - 2)) for v in net.act1.quadratic())
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(net.act1.double()(x), a * x**2 + b * x + c, atol=1e-12)


def test_fresh_it_is_the_start_of_relus_hermite_expansion() -> None:
    """E[relu(x) h_i(x)] under the standard normal distribution as sums on a grid; running moments are 0 and 1."""
    layer = HerPN(1, eps=0.0).eval()
    x = np.linspace(-12, 12, 24001)
    weights = np.exp(-(x**2) / 2) / np.exp(-(x**2) / 2).sum()
    basis = [np.ones_like(x), x, (x**2 - 1) / math.sqrt(2)]
    expected = sum(float((np.maximum(x, 0) * h * weights).sum()) * h for h in basis)
    with torch.no_grad():
        got = layer.double()(torch.from_numpy(x)[:, None]).numpy()[:, 0]
    assert np.abs(got - expected).max() < 1e-5


def test_each_basis_function_is_normalized_in_training() -> None:
    layer = HerPN(2).train()
    x = 7.0 + 3.0 * torch.randn(4096, 2, generator=torch.Generator().manual_seed(0))
    first, second = layer.first(x), layer.second((x * x - 1) / math.sqrt(2))
    for normalized in (first, second):
        assert float(normalized.mean(0).abs().max()) < 1e-3
        assert float((normalized.var(0) - 1).abs().max()) < 1e-2


def test_a_vector_without_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="need \\(batch, channels"):
        HerPN(3)(torch.zeros(3))


def test_the_reference_network_learns_digits_and_exports_as_squares() -> None:
    recipe = Recipe.from_dict(
        {"name": "herpn", "network": "digits-cnn-herpn", "teacher": {"epochs": 6, "learning_rate": 5e-3}}
    )
    model = compress(None, recipe, quiet=True)
    assert [n.op for n in model.nodes] == ["conv2d", "quadratic", "conv2d", "quadratic", "reshape", "dense"]
    assert model.metadata["accuracy"]["teacher"] == model.metadata["accuracy"]["final"] >= 0.95
    assert all(model.node(n.name).attrs == {} for n in model.nodes if n.op == "quadratic")
    sites = model.metadata["sites"]
    assert [s["degree"] for s in sites.values()] == [2, 2] and all(s["outside"]["share"] < 0.01 for s in sites.values())
    plan = compile(model)
    assert max(v.level for v in plan.values) - min(v.level for v in plan.values) == 2
