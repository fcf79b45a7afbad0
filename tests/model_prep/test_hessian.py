"""The trace per channel: quadratics with a known Hessian, exact Hessians of a small network, half precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from he_runtime.errors import ModelError
from he_runtime.model import Node
from model_prep.capture.capture import capture
from model_prep.channels.hessian import Probing, channel_sensitivity, channel_traces, hutchinson
from model_prep.channels.selection import select_channels
from model_prep.channels.slimming import removable
from model_prep.data import load
from model_prep.graph import Graph
from model_prep.networks import build
from model_prep.settings import Training
from model_prep.train import fit
from model_prep.trainable import TrainableGraph


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors lose more to thread hand-over than they gain, and sums depend on the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def quadratic(seed: int, diagonal: bool = False) -> tuple[Callable[[], Tensor], dict[str, Tensor], np.ndarray]:
    """w^T H w / 2 over a kernel (6, 2, 3, 3) and a matrix (4, 9), with H dense; and the diagonal of H."""
    generator = torch.Generator().manual_seed(seed)
    weights = {"conv": torch.zeros(6, 2, 3, 3, requires_grad=True), "fc": torch.zeros(4, 9, requires_grad=True)}
    size = sum(w.numel() for w in weights.values())
    factor = torch.randn(size, 4 * size, generator=generator) * torch.rand(size, 1, generator=generator).add(0.5)
    hessian = factor @ factor.T / (4 * size)
    hessian = torch.diag(hessian.diagonal()) if diagonal else hessian

    def loss() -> Tensor:
        flat = torch.cat([w.flatten() for w in weights.values()])
        return 0.5 * flat @ hessian @ flat + flat.sum()

    return loss, weights, hessian.diagonal().double().numpy()


def blocks(diagonal: np.ndarray) -> dict[str, np.ndarray]:
    return {"conv": diagonal[:108].reshape(6, -1).sum(1), "fc": diagonal[108:].reshape(4, -1).sum(1)}


@pytest.mark.parametrize("seed", range(5))
def test_a_quadratic_is_within_three_percent_at_300_probes(seed: int) -> None:
    loss, weights, diagonal = quadratic(seed)
    found = hutchinson(loss, weights, Probing(tolerance=0.0, seed=seed))
    assert found.probes == 300 and not found.settled
    for key, expected in blocks(diagonal).items():
        assert np.abs(found.values[key] / expected - 1).max() <= 0.03


def test_one_probe_is_exact_where_the_hessian_is_diagonal() -> None:
    loss, weights, diagonal = quadratic(0, diagonal=True)
    found = hutchinson(loss, weights, Probing(probes=1))
    for key, expected in blocks(diagonal).items():
        assert np.allclose(found.values[key], expected, rtol=1e-5)


def test_more_probes_err_less() -> None:
    loss, weights, diagonal = quadratic(0)

    def error(probes: int) -> float:
        runs = [hutchinson(loss, weights, Probing(probes=probes, tolerance=0.0, seed=s)) for s in range(8)]
        return float(np.mean([np.abs(r.values[k] - v).mean() for r in runs for k, v in blocks(diagonal).items()]))

    assert 2.5 < error(4) / error(64) < 6.5  # a square root: 4


def test_it_stops_once_the_running_mean_has_settled() -> None:
    loss, weights, _ = quadratic(0, diagonal=True)
    found = hutchinson(loss, weights, Probing(probes=300, patience=5))
    assert found.settled and found.probes == 6
    loss, weights, _ = quadratic(0)
    loose, tight = (hutchinson(loss, weights, Probing(tolerance=t)) for t in (1e-2, 1e-3))
    assert loose.settled and loose.probes < tight.probes <= 300


def test_a_seed_repeats_itself() -> None:
    loss, weights, _ = quadratic(0)
    first, again, other = (hutchinson(loss, weights, Probing(probes=3, seed=s)).values["fc"] for s in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_loss_that_is_linear_in_a_layer_has_no_trace_there() -> None:
    weights = {"bent": torch.ones(2, 3, requires_grad=True), "straight": torch.ones(2, 3, requires_grad=True)}
    found = hutchinson(lambda: (weights["bent"] ** 2).sum() + weights["straight"].sum(), weights, Probing(probes=2))
    assert found.values["bent"].tolist() == [6.0, 6.0] and found.values["straight"].tolist() == [0.0, 0.0]


def half_loss(curvature: float, weights: dict[str, Tensor]) -> Callable[[], Tensor]:
    """c w^2 / 2 in genuine half precision, forward and backward: derivatives beyond 65504 overflow."""

    def loss() -> Tensor:
        w = weights["w"].half()
        return (w * w * (curvature / 2)).sum().float()

    return loss


@pytest.mark.parametrize("curvature", [1e-4, 1.0, 60.0])
def test_the_loss_scale_comes_off_again(curvature: float) -> None:
    """At 2^12 the steepest of these overflows, and without a scale the flattest loses digits."""
    weights = {"w": torch.full((3, 4), 0.5, requires_grad=True)}
    found = hutchinson(half_loss(curvature, weights), weights, Probing("fp16", probes=10, tolerance=0.0))
    assert np.allclose(found.values["w"], 4 * curvature, rtol=2e-3)
    assert (found.overflows > 0) == (curvature == 60.0) == (found.scale < 2**12)


def test_fifty_clean_probes_double_the_scale() -> None:
    weights = {"w": torch.full((3, 4), 0.5, requires_grad=True)}
    scales = [
        hutchinson(half_loss(1e-3, weights), weights, Probing("fp16", probes=n, tolerance=0.0)).scale
        for n in (49, 50, 100)
    ]
    assert scales == [2**12, 2**13, 2**14]


def test_a_scale_that_grew_too_large_shrinks_again() -> None:
    weights = {"w": torch.full((3, 4), 0.5, requires_grad=True)}
    found = hutchinson(half_loss(10.0, weights), weights, Probing("fp16", probes=120, tolerance=0.0))
    assert found.overflows == 2 and found.scale == 2**12  # 8192 * 10 is beyond half precision, twice
    assert np.allclose(found.values["w"], 40.0, rtol=2e-3)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_derivatives_that_are_not_finite_are_refused(precision: str) -> None:
    weights = {"w": torch.zeros(2, 2, requires_grad=True)}
    with pytest.raises(ModelError, match="not finite"):
        hutchinson(lambda: weights["w"].abs().pow(0.5).sum(), weights, Probing(precision))


@pytest.mark.parametrize(
    "wrong", [{"precision": "fp8"}, {"probes": 0}, {"patience": 0}, {"tolerance": -1.0}, {"tolerance": float("nan")}]
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="cannot estimate a trace"):
        Probing(**wrong)  # type: ignore[arg-type]


def test_softmax_regression_has_a_closed_form() -> None:
    """The block of class c is E[p_c (1 - p_c) x x^T], so its trace is E[p_c (1 - p_c) |x|^2]."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 5))
    graph = Graph("x", (5,), "f", (Node("f", "dense", ("x",), (3,), {}, {"weight": "w"}),), {"w": weight})
    net = TrainableGraph(graph)
    x, y = rng.normal(size=(60, 5)).astype(np.float32), rng.integers(0, 3, size=60)
    p = np.exp(x @ weight.T)
    p /= p.sum(1, keepdims=True)
    expected = (p * (1 - p) * (x.astype(np.float64) ** 2).sum(1, keepdims=True)).mean(0)
    traces = channel_traces(net, x, y, Probing(probes=300, tolerance=0.0)).values["w"]
    assert np.allclose(traces, expected, rtol=0.1)
    sensitivity = channel_sensitivity(net, {"w": expected})["w"]
    assert np.allclose(sensitivity, expected / 5 * (weight**2).sum(1), rtol=1e-5)
    net.masks = {"w": torch.tensor([[True] * 5, [False] * 5, [True] * 5])}
    assert channel_sensitivity(net, {"w": expected})["w"][1] == 0.0


def test_the_exact_hessian_of_a_small_network() -> None:
    """Against second derivatives by torch.autograd.functional.hessian."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 6)).astype(np.float32), rng.integers(0, 3, size=30)
    net = TrainableGraph(capture(module, x[:2]))

    def loss(first: Tensor, second: Tensor) -> Tensor:
        hidden = torch.tanh(F.linear(torch.from_numpy(x), first, module[0].bias))
        return F.cross_entropy(F.linear(hidden, second, module[2].bias), torch.from_numpy(y))

    arguments = (module[0].weight.detach(), module[2].weight.detach())
    hessian = torch.autograd.functional.hessian(loss, arguments)
    found = channel_traces(net, x, y, Probing(probes=400, tolerance=0.0)).values
    for i, key in enumerate(net.weight_keys()):
        out, p = arguments[i].shape
        block = torch.as_tensor(hessian[i][i]).reshape(out * p, out * p)
        expected = block.diagonal().reshape(out, p).sum(1).numpy()
        assert np.abs(found[key] - expected).max() <= 0.1 * np.abs(expected).max()


@pytest.fixture(scope="module")
def trained() -> tuple[TrainableGraph, np.ndarray, np.ndarray]:
    """The digits CNN after a few epochs, and the batch on which it is probed."""
    data = load("digits")
    x, module = data.normalized("train"), build("digits-cnn", 0)
    fit(module, x, data.y_train, Training(epochs=2, learning_rate=5e-3), seed=0, quiet=True)
    return TrainableGraph(capture(module, x[:2])), x[:64], data.y_train[:64]


PROBES = 40


@pytest.fixture(scope="module")
def full(trained: tuple[TrainableGraph, np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    net, x, y = trained
    return channel_sensitivity(net, channel_traces(net, x, y, Probing(probes=PROBES, tolerance=0.0)).values)


@pytest.mark.parametrize("precision", ["bf16", "fp16-emulated", "fp16"])
def test_half_precision_ranks_channels_alike(
    trained: tuple[TrainableGraph, np.ndarray, np.ndarray], full: dict[str, np.ndarray], precision: str
) -> None:
    net, x, y = trained
    traces = channel_traces(net, x, y, Probing(precision, probes=PROBES, tolerance=0.0))
    half = channel_sensitivity(net, traces.values)
    assert any(not np.array_equal(half[key], full[key]) for key in full)
    layers = [key for key, flags in removable(net.graph).items() if flags.any()]
    assert len(layers) == 2
    ranks = spearmanr(*(np.concatenate([s[key] for key in layers]) for s in (half, full)))
    assert ranks.statistic >= 0.95
    goes = [~np.concatenate(list(select_channels({key: s[key] for key in layers}, 0.5).values())) for s in (half, full)]
    assert goes[0].sum() == goes[1].sum() == 12
    assert (goes[0] & goes[1]).sum() >= 0.9 * 12


@pytest.mark.parametrize("precision", ["fp32", "fp16-emulated"])
def test_the_network_is_left_as_it_was(trained: tuple[TrainableGraph, np.ndarray, np.ndarray], precision: str) -> None:
    net, x, y = trained
    before, key = {name: p.detach().clone() for name, p in net.named_parameters()}, net.weight_keys()[0]
    rounding, seen = {key: lambda values: values * 1.0}, []
    net.rounding, net.observers = rounding, {net.graph.output: lambda values: seen.append(1) or values}
    observers = net.observers
    net.train()
    try:
        channel_traces(net, x[:8], y[:8], Probing(precision, probes=2))
        assert net.rounding is rounding and net.observers is observers and seen
        assert net.training and not net.pre_activations
        assert all(torch.equal(p, before[name]) and p.grad is None for name, p in net.named_parameters())
    finally:
        net.rounding, net.observers = {}, {}
        net.eval()
