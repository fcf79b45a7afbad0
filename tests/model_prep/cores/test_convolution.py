"""The cores on kernels (out, in, height, width) and with a teacher: nothing in them is for matrices only."""

from __future__ import annotations

import numpy as np
import pytest

from model_prep.capture.capture import capture
from model_prep.cores.admm import Admm, admm
from model_prep.cores.masked import retrain
from model_prep.cores.reweighted import Reweighted, reweighted
from model_prep.cores.session import weights
from model_prep.folding.folding import fold_affine
from model_prep.masks import Mask
from model_prep.networks import build
from model_prep.settings import Training
from model_prep.train import accuracy, fit, predict
from model_prep.trainable import TrainableGraph
from tests.model_prep.cores.sessions import SimpleSession

KEY = "conv2.weight"


@pytest.fixture
def convolutional(digits: tuple[np.ndarray, ...]) -> SimpleSession:
    module = build("digits-cnn", 0)
    fit(module, digits[0], digits[1], Training(epochs=6, learning_rate=5e-3), seed=0, quiet=True)
    graph = fold_affine(capture(module, digits[0][:2]))
    return SimpleSession(TrainableGraph(graph), digits[0], digits[1], teacher=TrainableGraph(graph))


def test_taps_die_are_cut_and_stay_cut(convolutional: SimpleSession, digits: tuple[np.ndarray, ...]) -> None:
    """Groups are (input channel, tap) for all filters: 8 * 9 of them; then ADMM halves what is left."""
    session, shape = convolutional, weights(convolutional.net)[KEY].shape
    labels = np.broadcast_to(np.arange(72).reshape(1, 8, 3, 3), shape).copy()
    settings = Reweighted(Training(epochs=5, learning_rate=1e-2), rounds=3, strength=1e-2, caps={KEY: 40})
    report = reweighted(session, {KEY: labels}, settings)
    norms = report.norms[KEY][0]
    assert norms.shape == (72,) and (norms < 1e-3).sum() >= 10
    keep = (norms >= np.sort(norms)[-36])[labels]
    retrain(session, Mask({KEY: keep}, "column"), Training(epochs=2, learning_rate=3e-3))

    def half_of_filters(values: np.ndarray) -> np.ndarray:
        energy = np.square(values).sum((1, 2, 3))
        return values * (energy >= np.sort(energy)[8])[:, None, None, None]

    ended = admm(session, {KEY: half_of_filters}, Admm(Training(epochs=3, learning_rate=1e-2), rounds=5, rho=1e-1))
    w = weights(session.net)[KEY]
    assert ended.worst[-1] < ended.worst[0]
    assert w.shape == shape and (w[~keep] == 0).all()
    assert sorted(np.count_nonzero(w, axis=(1, 2, 3))) == [0] * 8 + [36] * 8
    retrain(session, Mask({KEY: w != 0}, "filters and columns"), Training(epochs=4, learning_rate=5e-3))
    assert accuracy(predict(session.net, digits[2]), digits[3]) > 0.9
