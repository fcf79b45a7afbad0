"""The diagonal Fisher information against one backward pass per sample, and against a closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from he_runtime.errors import ModelError
from he_runtime.model import Node
from model_prep.capture.capture import capture
from model_prep.channels.fisher import diagonal_fisher
from model_prep.data import load
from model_prep.graph import Graph
from model_prep.networks import build
from model_prep.polynomials.polynomial import replace_activations
from model_prep.trainable import TrainableGraph, straight_through


@pytest.fixture(scope="module")
def graph() -> Graph:
    return capture(build("digits-cnn", 0), np.zeros((2, 1, 8, 8), dtype=np.float32))


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load("digits")
    return data.normalized("train")[:50], data.y_train[:50]


def by_hand(net: TrainableGraph, x: np.ndarray, y: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """One backward pass per micro-batch."""
    sums = dict.fromkeys(net.weight_keys(), 0.0)
    count = len(x) // size
    for i in range(count):
        part = slice(i * size, (i + 1) * size)
        loss = F.cross_entropy(net(torch.from_numpy(x[part])), torch.from_numpy(y[part]))
        gradients = torch.autograd.grad(loss, [net.parameter(key) for key in sums])
        for key, gradient in zip(sums, gradients, strict=True):
            sums[key] = sums[key] + gradient.double().numpy() ** 2 * size / count
    return sums  # type: ignore[return-value]


@pytest.mark.parametrize("size", [1, 4])
def test_it_is_the_mean_square_of_gradients(graph: Graph, digits: tuple[np.ndarray, np.ndarray], size: int) -> None:
    net = TrainableGraph(graph)
    found, expected = diagonal_fisher(net, *digits, micro_batch=size), by_hand(net, *digits, size)
    assert list(found) == net.weight_keys()
    for key, values in found.items():
        assert values.shape == tuple(net.parameter(key).shape) and values.dtype == np.float64
        assert np.allclose(values, expected[key], rtol=1e-3, atol=1e-6 * values.max())


def test_it_sees_quadratics_masks_and_roundings(graph: Graph, digits: tuple[np.ndarray, np.ndarray]) -> None:
    net = TrainableGraph(*replace_activations(graph, digits[0]))
    first, second, _ = net.weight_keys()
    net.masks = {second: torch.rand(net.parameter(second).shape, generator=torch.Generator().manual_seed(0)) < 0.5}
    net.rounding = {first: lambda values: straight_through(values, 4)}
    found, expected = diagonal_fisher(net, *digits), by_hand(net, *digits, 1)
    assert not found[second][~net.masks[second].numpy()].any()
    for key, values in found.items():
        assert np.allclose(values, expected[key], rtol=1e-3, atol=1e-6 * values.max())


def test_chunks_add_up(graph: Graph, digits: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    net = TrainableGraph(graph)
    whole = diagonal_fisher(net, *digits)
    monkeypatch.setattr("model_prep.channels.fisher._CHUNK_ENTRIES", 7 * sum(w.size for w in whole.values()))
    parts = diagonal_fisher(net, *digits)
    assert all(np.allclose(parts[key], whole[key], rtol=1e-4, atol=1e-9) for key in whole)


def test_logistic_regression_has_a_closed_form() -> None:
    """dL/dw = (p - onehot) x^T for one dense layer."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 5))
    graph = Graph("x", (5,), "f", (Node("f", "dense", ("x",), (3,), {}, {"weight": "w"}),), {"w": weight})
    x, y = rng.normal(size=(40, 5)).astype(np.float32), rng.integers(0, 3, size=40)
    logits = x @ weight.T
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = np.mean((p - np.eye(3)[y])[:, :, None] ** 2 * x[:, None, :].astype(np.float64) ** 2, axis=0)
    assert np.allclose(diagonal_fisher(TrainableGraph(graph), x, y)["w"], expected, rtol=1e-4)


def test_the_network_is_left_as_it_was(graph: Graph, digits: tuple[np.ndarray, np.ndarray]) -> None:
    net = TrainableGraph(graph).train()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    diagonal_fisher(net, *digits)
    assert net.training and not net.pre_activations
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in net.named_parameters())


def test_nothing_to_measure_on_is_refused(graph: Graph, digits: tuple[np.ndarray, np.ndarray]) -> None:
    net, (x, y) = TrainableGraph(graph), digits
    for size in (51, 0, -1):
        with pytest.raises(ModelError, match="at least one full one"):
            diagonal_fisher(net, x, y, micro_batch=size)


def test_a_diverged_network_is_refused(graph: Graph, digits: tuple[np.ndarray, np.ndarray]) -> None:
    net = TrainableGraph(graph)
    with torch.no_grad():
        net.parameter(net.weight_keys()[-1]).fill_(torch.inf)
    with pytest.raises(ModelError, match="not finite"):
        diagonal_fisher(net, *digits)
