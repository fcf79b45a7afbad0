"""Training that diverges: a typed error that says where and why, and the last weights that worked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from he_runtime.errors import ModelError
from model_prep.cores.session import set_masks, weights
from model_prep.settings import Training
from model_prep.train import Diverged, Hooks, fit, predict
from tests.model_prep.cores.sessions import SimpleSession

STEPS_PER_EPOCH = 10  # 640 images in batches of 64


class Faulty:
    """A penalty that is `value` at one step and zero at all others; keeps the weights of each epoch's start."""

    def __init__(self, session: SimpleSession, step: int, value: float) -> None:
        self.session, self.step, self.value, self.seen = session, step, value, 0
        self.starts: list[dict[str, np.ndarray]] = []

    def penalty(self) -> torch.Tensor:
        self.seen += 1
        return torch.tensor(self.value if self.seen - 1 == self.step else 0.0)

    def hooks(self) -> Hooks:
        return Hooks(before_epoch=lambda _: self.starts.append(weights(self.session.net)), penalty=self.penalty)


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(("step", "good_epoch"), [(0, 0), (15, 1), (20, 1), (29, 2)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_last_good_epoch_is_restored(session: SimpleSession, step: int, good_epoch: int, value: float) -> None:
    """At step 20 the third epoch's first loss fails, so its starting weights are not trusted: the second's are."""
    faulty = Faulty(session, step, value)
    with pytest.raises(Diverged, match=rf"training 'run': the penalty is not finite at step {step}") as caught:
        session.fit(Training(epochs=3), "run", faulty.hooks())
    error = caught.value
    assert isinstance(error, ModelError)
    assert (error.label, error.step, error.good_step) == ("run", step, STEPS_PER_EPOCH * good_epoch)
    assert same(weights(session.net), faulty.starts[good_epoch])
    assert not session.net.training


def test_weights_that_explode_are_named_and_undone(session: SimpleSession) -> None:
    """Nothing is wrong with the loss here but the size of the weights that one step leaves behind."""

    def explode() -> None:
        with torch.no_grad():
            for parameter in session.net.parameters():
                parameter.mul_(1e30)

    before = weights(session.net)
    with pytest.raises(Diverged, match="the loss is not finite at step 1"):
        session.fit(Training(epochs=1), "run", Hooks(after_step=explode))
    assert same(weights(session.net), before)
    logits = predict(session.net, session.x)
    assert np.isfinite(logits).all()


def test_a_gradient_that_is_not_finite_is_named(session: SimpleSession) -> None:
    parameter = session.net.parameter("fc1.weight")
    with pytest.raises(Diverged, match="the gradient is not finite at step 0"):
        session.fit(Training(epochs=1), "run", Hooks(penalty=lambda: (parameter - parameter.detach()).sum().sqrt()))


def test_the_very_last_step_is_checked_too(session: SimpleSession) -> None:
    done = 0

    def spoil() -> None:
        nonlocal done
        done += 1
        if done == 2 * STEPS_PER_EPOCH:
            with torch.no_grad():
                session.net.parameter("fc3.bias").fill_(math.nan)

    with pytest.raises(Diverged, match="the outputs are not finite at step 20") as caught:
        session.fit(Training(epochs=2), "run", Hooks(after_step=spoil))
    assert caught.value.good_step == STEPS_PER_EPOCH
    assert np.isfinite(predict(session.net, session.x)).all()


def test_masks_go_back_with_the_weights(session: SimpleSession) -> None:
    masks = [np.arange(640).reshape(10, 64) % k == 0 for k in (2, 3, 4)]
    chosen = iter(masks)
    faulty = Faulty(session, 20, math.nan)
    hooks = Hooks(before_epoch=lambda _: set_masks(session.net, {"fc3.weight": next(chosen)}), penalty=faulty.penalty)
    with pytest.raises(Diverged):
        session.fit(Training(epochs=3), "run", hooks)
    assert np.array_equal(session.net.masks["fc3.weight"].numpy(), masks[1])


def test_inputs_that_are_not_finite_leave_the_network_as_it_was(session: SimpleSession) -> None:
    before, x = weights(session.net), session.x.copy()
    x[:] = np.nan
    with pytest.raises(Diverged, match="inputs that are finite"):
        SimpleSession(session.net, x, session.y).fit(Training(epochs=1), "run")
    assert same(weights(session.net), before)


@pytest.mark.parametrize("shift", [8, 50, 10**30])
def test_a_shift_that_leaves_nothing_of_an_image_is_refused(shift: int) -> None:
    x, y = np.zeros((4, 1, 8, 12), dtype=np.float32), np.zeros(4, dtype=np.int64)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(96, 2))
    with pytest.raises(ModelError, match=rf"training 'run': got shift = {shift}, need one below 8.*; try 2"):
        fit(net, x, y, Training(epochs=1, shift=shift), seed=0, label="run", quiet=True)
    fit(net, x, y, Training(epochs=1, batch_size=4, shift=7), seed=0, quiet=True)
