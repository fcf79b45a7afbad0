"""Sessions: each run draws its own batches; and the order in which weights are put onto levels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from model_prep.cores.admm import Admm
from model_prep.cores.session import set_arrays, weights
from model_prep.cores.settled import _nearest
from model_prep.graph import Graph
from model_prep.trainable import TrainableGraph
from tests.model_prep.cores.sessions import SimpleSession

ONE_EPOCH = replace(Admm().training, epochs=1)


def test_runs_of_a_session_differ_and_repeat_with_the_seed(dense: Graph, digits: tuple[np.ndarray, ...]) -> None:
    """Rounds that all saw the same batches in the same order would learn that order."""

    def two_runs(seed: int) -> list[np.ndarray]:
        session = SimpleSession(TrainableGraph(dense), digits[0], digits[1], seed=seed)
        start, ends = weights(session.net), []
        for bias in ("fc1.bias", "fc2.bias", "fc3.bias"):
            session.net.parameter(bias).requires_grad_(False)
        for _ in range(2):
            set_arrays(session.net, start)
            session.fit(ONE_EPOCH, "run")
            ends.append(weights(session.net)["fc1.weight"])
        return ends

    first, again = two_runs(5), two_runs(5)
    assert not np.array_equal(first[0], first[1])
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], two_runs(9)[0])


def test_the_callers_random_state_is_left(session: SimpleSession) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    session.fit(ONE_EPOCH, "run")
    assert torch.equal(torch.rand(1), expected)


def test_weights_put_down_stay_down_and_the_nearest_follow() -> None:
    """A fixed weight whose level moved away keeps its place; ties go to the lower index."""
    distance, fixed = np.array([[0.9, 0.2], [0.1, 0.1]]), np.array([[True, False], [False, False]])
    assert _nearest(distance, fixed, 2).tolist() == [[True, False], [True, False]]
    assert _nearest(distance, fixed, 3).tolist() == [[True, False], [True, True]]
