"""Quantization-aware training, activation ranges, and weights settled onto levels share by share."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from he_runtime.errors import ModelError
from model_prep.cores import quantized
from model_prep.cores.admm import on_support
from model_prep.cores.quantized import ActivationObserver, Qat, harden, qat, straight_through_of
from model_prep.cores.session import set_masks, weights
from model_prep.cores.settled import Settle, settle
from model_prep.quantizers import AlphaQ
from model_prep.settings import Training
from model_prep.train import Diverged
from model_prep.trainable import Transform, straight_through
from tests.model_prep.cores.sessions import SimpleSession

TRAINING = Training(epochs=4, learning_rate=2e-3)
KEY = "fc2.weight"


def binary(values: np.ndarray) -> np.ndarray:
    return np.abs(values).mean() * np.where(values < 0, -1.0, 1.0)


def kept(session: SimpleSession, density: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {key: rng.random(w.shape) < density for key, w in weights(session.net).items()}


def test_a_projection_becomes_a_straight_through_quantizer() -> None:
    values = torch.tensor([0.3, -0.1, 0.7], requires_grad=True)
    rounded = straight_through_of(binary)(values)
    level = float(np.float32(np.abs(values.detach().numpy().astype(np.float64)).mean()))
    assert rounded.tolist() == [level, -level, level]  # exactly: no rounding error from the straight-through sum
    rounded.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert values.grad is not None and values.grad.tolist() == [1.0, 2.0, 3.0]


def test_the_observer_averages_and_rounds_asymmetrically() -> None:
    observer = ActivationObserver(bits=8, decay=0.01)
    observer(torch.tensor([-1.0, 3.0], requires_grad=True))
    observer(torch.tensor([-2.0, 1.0], requires_grad=True))
    low, high = -1.01, 0.99 * 3.0 + 0.01 * 1.0
    grid = observer.range
    assert (grid.low, grid.high) == pytest.approx((low, high))
    assert grid.scale == pytest.approx((high - low) / 255) and grid.zero_point == round(255 * 1.01 / (high - low))
    observer.frozen = True
    x = torch.tensor([-9.0, -0.5, 0.0, 0.4, 9.0], requires_grad=True)
    y = observer(x)
    q = y.detach().numpy() / grid.scale + grid.zero_point
    assert np.allclose(q, np.round(q), atol=1e-3) and np.round(q).min() == 0 and np.round(q).max() == 255
    assert q[2] == grid.zero_point and abs(float(y[1].detach()) + 0.5) <= grid.scale / 2 + 1e-6
    y.sum().backward()
    assert x.grad is not None and np.allclose(x.grad, [0, 1, 1, 1, 0])
    assert observer.range == grid


def test_evaluation_moves_no_range() -> None:
    observer = ActivationObserver(bits=8, decay=0.5)
    with torch.no_grad():
        x = torch.tensor([-9.0, 9.0])
        assert torch.equal(observer(x), x) and observer.range.scale == 0
    assert torch.equal(observer(torch.zeros(3, requires_grad=True)), torch.zeros(3))


def test_a_range_always_holds_zero() -> None:
    observer = ActivationObserver(bits=4, decay=0.1)
    observer(torch.tensor([2.0, 5.0], requires_grad=True))
    assert (observer.range.low, observer.range.high, observer.range.zero_point) == (0.0, 5.0, 0)


def test_trained_int8_keeps_accuracy_and_reports_ranges(session: SimpleSession, accuracy: Callable[..., float]) -> None:
    dense = accuracy(session)
    rounding = dict.fromkeys(session.net.weight_keys(), partial(straight_through, bits=8))
    report = qat(session, rounding, Qat(TRAINING))
    nodes = {n.name for n in session.net.graph.activations()}
    assert set(report.ranges) == nodes and len(nodes) == 2
    assert all(r.low == 0 and 0 < r.high < 1000 and r.zero_point == 0 for r in report.ranges.values())  # ReLUs
    assert accuracy(session) > dense - 0.01
    assert set(session.net.rounding) == set(rounding) and set(session.net.observers) == nodes


def test_ranges_stop_moving_in_the_last_fifth(session: SimpleSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 steps: 32 are watched. The range is the moving average of exactly those batches' extremes."""
    seen: list[tuple[float, float]] = []
    node = session.net.graph.nodes[-1].name

    class Spy(ActivationObserver):
        def _watch(self, low: float, high: float) -> None:
            seen.append((low, high))
            super()._watch(low, high)

    monkeypatch.setattr(quantized, "ActivationObserver", Spy)
    report = qat(session, {}, Qat(TRAINING), nodes=[node])
    assert len(seen) == 32
    low, high = seen[0]
    for a, b in seen[1:]:
        low, high = 0.99 * low + 0.01 * a, 0.99 * high + 0.01 * b
    assert (report.ranges[node].low, report.ranges[node].high) == pytest.approx((low, high))
    assert low < 0 < high and report.ranges[node].zero_point > 0


def test_binary_training_keeps_zeros_and_one_magnitude(session: SimpleSession, accuracy: Callable[..., float]) -> None:
    keep = kept(session, 0.6)
    set_masks(session.net, keep)
    rounding = {key: straight_through_of(on_support(binary, keep[key])) for key in keep}
    rounding[KEY] = straight_through_of(binary)  # knows no zero: the core must keep them
    chance = qat(session, rounding, Qat(Training(), activation_bits=0))
    assert chance.ranges == {}
    before = accuracy(session)
    qat(session, rounding, Qat(Training(epochs=12, learning_rate=3e-3), activation_bits=0))
    trained = accuracy(session)
    assert trained > before + 0.1
    harden(session.net)
    assert session.net.rounding == {} and accuracy(session) == trained
    for key, w in weights(session.net).items():
        assert np.array_equal(w != 0, keep[key])
        assert len(np.unique(np.abs(w[keep[key]]))) == 1, key


def test_divergence_removes_the_quantizers(session: SimpleSession) -> None:
    before = weights(session.net)
    rounding = {KEY: partial(straight_through, bits=4)}
    with pytest.raises(Diverged, match="'quantization'"):
        qat(session, rounding, Qat(TRAINING), penalty=lambda: torch.tensor(math.inf))
    assert session.net.rounding == {} and session.net.observers == {}
    assert all(np.array_equal(w, before[key]) for key, w in weights(session.net).items())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(
    "rounding",
    [partial(straight_through, bits=4), straight_through_of(lambda values: AlphaQ(4).project(values).values)],
)
def test_training_that_explodes_has_diverged_with_observers_too(
    session: SimpleSession, rounding: Transform, optimizer: str
) -> None:
    """Neither a range nor levels can be made of what is not finite; that is for the loss to show."""
    before, hot = weights(session.net), Training(epochs=3, learning_rate=1e30, optimizer=optimizer)
    with pytest.raises(Diverged, match=r"the \w+ (is|are) not finite at step [1-9]") as caught:
        qat(session, {KEY: rounding}, Qat(hot, activation_bits=6), nodes=[n.name for n in session.net.graph.nodes])
    assert caught.value.good_step == 0
    assert session.net.rounding == {} and session.net.observers == {}
    assert all(np.array_equal(w, before[key]) for key, w in weights(session.net).items())


def test_what_is_not_finite_passes_an_observer_and_moves_no_range() -> None:
    observer = ActivationObserver(bits=8, decay=0.5)
    observer(torch.tensor([-1.0, 3.0], requires_grad=True))
    seen = observer.range
    for value in (math.nan, math.inf, -math.inf):
        x = torch.tensor([0.5, value], requires_grad=True)
        assert observer(x) is x and observer.range == seen


def test_settling_ends_on_levels_and_fixes_a_growing_share(
    session: SimpleSession, accuracy: Callable[..., float]
) -> None:
    keep = kept(session, 0.7)
    set_masks(session.net, keep)
    projections = {key: on_support(binary, k) for key, k in keep.items()}
    on_level: list[float] = []
    fit = session.fit

    def watched(*arguments: object) -> None:
        fit(*arguments)  # type: ignore[arg-type]
        w = weights(session.net)[KEY][keep[KEY]]
        on_level.append(float(np.unique(np.abs(w), return_counts=True)[1].max() / w.size))

    session.fit = watched  # type: ignore[method-assign,assignment]
    distances = settle(session, projections, Settle(Training(epochs=6, learning_rate=5e-3), (0.4, 0.7, 0.9, 1.0)))
    assert on_level == pytest.approx([0.4, 0.7, 0.9, 1.0], abs=0.01)
    assert distances[-1][KEY] < distances[0][KEY]
    for key, w in weights(session.net).items():
        assert np.array_equal(w != 0, keep[key]) and len(np.unique(np.abs(w[keep[key]]))) == 1
    assert accuracy(session) > 0.85


def test_bad_arguments_are_refused(session: SimpleSession) -> None:
    with pytest.raises(ModelError, match=r"observed nodes: got \['nope'\]"):
        qat(session, {}, Qat(), nodes=["nope"])
    with pytest.raises(ModelError, match=r"quantizers of arrays: got \['nope'\]"):
        qat(session, {"nope": straight_through_of(binary)}, Qat())
    assert session.net.observers == {}
    for settings in ({"activation_bits": 1}, {"decay": 0.0}, {"frozen": 1.5}):
        with pytest.raises(ModelError, match=next(iter(settings))):
            Qat(**settings)  # type: ignore[arg-type]
    for shares in ((), (0.5,), (0.8, 0.5, 1.0), (0.0, 1.0)):
        with pytest.raises(ModelError, match="shares"):
            Settle(shares=shares)
    with pytest.raises(ModelError, match="no projection"):
        settle(session, {}, Settle())
    with pytest.raises(ModelError, match=r"levels of 'fc2.weight': got shape \(64,\)"):
        settle(session, {KEY: lambda w: w[0]}, Settle(Training()))
