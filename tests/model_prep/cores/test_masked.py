"""Masked retraining and the cubic schedule."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch

from he_runtime.errors import ModelError
from model_prep.cores.masked import gradual, reached_share, retrain
from model_prep.cores.session import set_masks, weights
from model_prep.graph import Graph
from model_prep.masks import Mask, magnitude_mask
from model_prep.polynomials.polynomial import MAX_CENTER, MIN_CURVATURE, replace_activations
from model_prep.settings import Training
from model_prep.trainable import TrainableGraph
from tests.model_prep.cores.sessions import SimpleSession


def random_mask(session: SimpleSession, density: float, seed: int = 0) -> Mask:
    rng = np.random.default_rng(seed)
    return Mask({key: rng.random(w.shape) < density for key, w in weights(session.net).items()}, "unstructured")


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_retraining_leaves_zeros_exactly_zero(session: SimpleSession, optimizer: str) -> None:
    """Weights are dense before, and momentum, weight decay and a penalty on the raw weights all pull at them."""
    mask, parameter = random_mask(session, 0.4), session.net.parameter("fc1.weight")
    retrain(
        session,
        mask,
        Training(epochs=2, learning_rate=1e-2, optimizer=optimizer, weight_decay=0.1),
        penalty=lambda: (parameter - 1).square().mean(),
    )
    for key, w in weights(session.net).items():
        assert np.array_equal(w != 0, mask.keep[key])


def test_retraining_recovers_accuracy(session: SimpleSession, accuracy: Callable[..., float]) -> None:
    mask = magnitude_mask(weights(session.net), 0.1)
    retrain(session, mask, Training())  # no epoch: the cut alone, in the weights themselves
    cut = accuracy(session)
    assert sum(np.count_nonzero(w) for w in weights(session.net).values()) == mask.nonzeros
    retrain(session, mask, Training(epochs=8, learning_rate=5e-3))
    assert accuracy(session) > cut + 0.2


def test_a_second_mask_only_cuts_further(session: SimpleSession) -> None:
    first, second = random_mask(session, 0.5, 1), random_mask(session, 0.5, 2)
    retrain(session, first, Training())
    retrain(session, second, Training(epochs=1))
    for key, w in weights(session.net).items():
        assert np.array_equal(w != 0, first.keep[key] & second.keep[key])


def test_the_share_is_cubic() -> None:
    assert [reached_share(p, 0.5) for p in (0.0, 0.25, 0.5, 0.9)] == [0.0, 1 - 0.5**3, 1.0, 1.0]
    assert reached_share(0.0, 0.0) == 1.0
    rising = [reached_share(progress, 0.6) for progress in np.linspace(0, 1, 21)]
    assert all(a < b for a, b in pairwise(rising[:13])) and rising[12:] == [1.0] * 9


@pytest.mark.parametrize("ramp", [0.0, 0.5, 1.0])
def test_densities_follow_the_schedule_and_the_mask_freezes(session: SimpleSession, ramp: float) -> None:
    final, epochs = 0.1, 6
    shares: list[float] = []

    def choose(share: float) -> Mask:
        shares.append(share)
        return magnitude_mask(weights(session.net), 1 - (1 - final) * share)

    mask = gradual(session, choose, Training(epochs=epochs, learning_rate=3e-3), ramp)
    expected = [reached_share(e / epochs, ramp) for e in range(epochs) if e == 0 or (e - 1) / epochs < ramp]
    expected = expected if ramp < 1 else [*expected, 1.0]  # the ramp's end is the training's: cut after it
    assert shares == expected[: len(shares)] and shares[-1] == 1.0
    assert len(shares) == (1 if ramp == 0 else 4 if ramp == 0.5 else 7)
    assert mask.nonzeros == round(final * sum(w.size for w in weights(session.net).values()))
    for key, w in weights(session.net).items():
        assert np.array_equal(w != 0, mask.keep[key])


def test_shadow_weights_may_return_before_the_mask_freezes(session: SimpleSession) -> None:
    """A weight cut in the first epoch keeps its value under the mask, and lives on if the next mask wants it."""
    key, shape = "fc2.weight", (64, 64)
    before = weights(session.net)[key]
    turns = iter([np.arange(4096).reshape(shape) % 2 == 0, np.arange(4096).reshape(shape) % 2 == 1])
    mask = gradual(session, lambda _: Mask({key: next(turns)}, "x"), Training(epochs=2, weight_decay=0.0), 0.5)
    after = weights(session.net)[key]
    assert np.array_equal(after != 0, mask.keep[key]) and mask.keep[key][0, 1] and not mask.keep[key][0, 0]
    assert np.abs(after - before)[mask.keep[key]].max() < 0.1  # one epoch's move, from where they were


def test_what_was_cut_before_stays_cut(session: SimpleSession) -> None:
    earlier = random_mask(session, 0.5)
    set_masks(session.net, earlier)
    mask = gradual(
        session,
        lambda share: magnitude_mask(weights(session.net), 1 - 0.3 * share),
        Training(epochs=2),
        0.5,
    )
    for key, w in weights(session.net).items():
        assert not (mask.keep[key] & ~earlier.keep[key]).any()
        assert np.array_equal(w != 0, mask.keep[key])


def test_quadratics_stay_within_their_bounds(dense: Graph, digits: tuple[np.ndarray, ...]) -> None:
    """A penalty drives the curvature down; the core must hold it at its minimum after every step."""
    net = TrainableGraph(*replace_activations(dense, digits[0]))
    session = SimpleSession(net, digits[0], digits[1])
    names = [net.graph.node(site).arrays for site in net.sites]

    def flatten() -> torch.Tensor:
        return torch.stack([10 * net.parameter(n["a"]).sum() for n in names]).sum()

    training = Training(epochs=3, learning_rate=5e-2)
    gradual(session, lambda _: magnitude_mask(weights(net), 0.5), training, 0.0, penalty=flatten)
    retrain(session, Mask({}, "none"), training, penalty=flatten)
    for arrays in names:
        a, b = (net.parameter(arrays[role]).detach().numpy() for role in "ab")
        assert (a == np.float32(MIN_CURVATURE)).any()
        assert (a >= np.float32(MIN_CURVATURE)).all() and (np.abs(b) <= 2 * MAX_CENTER * a * 1.00001).all()


def test_masks_that_do_not_fit_are_refused(session: SimpleSession) -> None:
    with pytest.raises(ModelError, match=r"mask of arrays: got \['nope'\]"):
        retrain(session, Mask({"nope": np.ones(3, dtype=bool)}, "x"), Training())
    with pytest.raises(ModelError, match=r"mask 'fc1.weight': got shape \(3,\), need \(64, 64\)"):
        retrain(session, Mask({"fc1.weight": np.ones(3, dtype=bool)}, "x"), Training())
    with pytest.raises(ModelError, match=r"ramp 1\.5"):
        gradual(session, lambda _: random_mask(session, 0.5), Training(), 1.5)
