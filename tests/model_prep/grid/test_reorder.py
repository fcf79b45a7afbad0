"""Channels in another order: the same function, and masks that keep no less."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from he_runtime import compile, price
from he_runtime.cost import load_default
from model_prep.channels.permutation import reordering
from model_prep.data import load
from model_prep.graph import Graph
from model_prep.grid.budget import Budget, budget_of
from model_prep.grid.reorder import moved_net, reordering_for
from model_prep.reference_models import random_reference
from model_prep.train import predict
from model_prep.trainable import TrainableGraph

Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def net() -> TrainableGraph:
    return TrainableGraph(Graph.from_model(random_reference("digits-mlp")))


@pytest.fixture(scope="module")
def budget() -> tuple[Budget, float]:
    model, table = random_reference("digits-mlp"), load_default("tenseal")
    plan = compile(model, table=table, pitched=False)
    ms = price(plan, table).latency_ms
    return budget_of(model, plan.params.degree, table, ms), ms


def energies(net: TrainableGraph) -> dict[str, Floats]:
    return {key: np.asarray(net.to_graph().arrays[key]) ** 2 for key in net.weight_keys()}


def kept(budget: Budget, energy: dict[str, Floats], target: float) -> float:
    chosen = budget.masks(energy, target)
    return float(np.mean([energy[k][c.keep].sum() / energy[k].sum() for k, c in chosen.items()]))


def test_the_function_stays_and_the_masks_keep_no_less(net: TrainableGraph, budget: tuple[Budget, float]) -> None:
    found, ms = budget
    target = 0.5 * ms
    order = reordering_for(net, energies(net), found, target)
    moved = moved_net(net, order)
    x = load("digits").normalized("test")[:40].astype(np.float32)
    np.testing.assert_allclose(predict(moved, x), predict(net, x), rtol=1e-4, atol=1e-4)
    assert kept(found, energies(moved), target) >= kept(found, energies(net), target)


def test_tensors_next_to_a_layer_that_no_grid_describes_stay(net: TrainableGraph) -> None:
    """Without saliency of the last layer, only the tensor between the first two may move."""
    energy = energies(net)
    first, second, last = energy
    del energy[last]
    columns = {key: np.arange(value.shape[1]) % 7 < 2 for key, value in energy.items()}

    def masks(now: dict[str, Floats]) -> dict[str, npt.NDArray[np.bool_]]:
        return {key: np.broadcast_to(columns[key], value.shape) for key, value in now.items()}

    order = reordering(random_reference("digits-mlp"), energy, masks)
    assert {tensor.columns for tensor, _ in order.moves} == {second}
    del energy[second]
    assert reordering(random_reference("digits-mlp"), energy, masks).moves == ()
    assert list(energy) == [first]
