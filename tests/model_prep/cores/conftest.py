"""Small trained networks on digits, made once; each test takes a fresh copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from model_prep.capture.capture import capture
from model_prep.data import load
from model_prep.folding.folding import fold_affine
from model_prep.graph import Graph
from model_prep.networks import build
from model_prep.settings import Training
from model_prep.train import fit
from model_prep.trainable import TrainableGraph
from tests.model_prep.cores.sessions import SimpleSession


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, y of 640 training images; x, y of the test images."""
    data = load("digits")
    return data.normalized("train")[:640], data.y_train[:640], data.normalized("test"), data.y_test


@pytest.fixture(scope="session")
def dense(digits: tuple[np.ndarray, ...]) -> Graph:
    """digits-mlp (64-64-64-10) with its ReLUs, trained for a second."""
    module = build("digits-mlp", 0)
    fit(module, digits[0], digits[1], Training(epochs=12, learning_rate=3e-3), seed=0, quiet=True)
    return fold_affine(capture(module, digits[0][:2]))


@pytest.fixture
def session(dense: Graph, digits: tuple[np.ndarray, ...]) -> SimpleSession:
    return SimpleSession(TrainableGraph(dense), digits[0], digits[1], seed=1)


@pytest.fixture
def accuracy(digits: tuple[np.ndarray, ...]) -> Callable[[SimpleSession], float]:
    from model_prep.train import accuracy, predict

    return lambda session: accuracy(predict(session.net, digits[2]), digits[3])
