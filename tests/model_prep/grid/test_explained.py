"""What kept weights explain: against least squares on samples, between its limits, and as the measure that divides a budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime import compile, price
from he_runtime.cost import load_default
from model_prep.data import load
from model_prep.graph import Graph
from model_prep.grid.budget import budget_of
from model_prep.grid.explained import explained_share, input_covariances, unexplained
from model_prep.grid.layer import Choice, loss_of
from model_prep.grid.rows import RowLayer
from model_prep.reference_models import random_reference
from model_prep.trainable import TrainableGraph


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 9))
def test_it_is_what_least_squares_explains(seed: int, outputs: int, inputs: int) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((200, inputs)) @ random.standard_normal((inputs, inputs)) + 3.0
    weight, keep = random.standard_normal((outputs, inputs)), random.random((outputs, inputs)) < 0.5
    centred, left = x - x.mean(axis=0), 0.0
    for row, kept in zip(weight, keep, strict=True):
        fitted = np.linalg.lstsq(centred[:, kept], centred @ row, rcond=None)[0] if kept.any() else np.zeros(0)
        left += float(((centred[:, kept] @ fitted) ** 2).sum())
    wanted = left / float(((centred @ weight.T) ** 2).sum())
    found = explained_share(np.cov(x, rowvar=False, ddof=0), weight, keep)
    assert found == pytest.approx(wanted, abs=0.05) and 0 <= found <= 1
    more = keep | (random.random(keep.shape) < 0.5)
    assert explained_share(np.cov(x, rowvar=False, ddof=0), weight, more) >= found - 1e-3


def test_of_equal_inputs_one_stands_for_all_and_of_unrelated_ones_none_does() -> None:
    weight, one = np.ones((1, 4)), np.array([[True, False, False, False]])
    assert explained_share(np.ones((4, 4)), weight, one) == pytest.approx(1, abs=0.01)
    assert explained_share(np.eye(4), weight, one) == pytest.approx(0.25, abs=0.01)
    assert explained_share(np.eye(4), weight, ~one & one) == 0
    assert explained_share(np.eye(4), weight, one | ~one) == 1
    assert explained_share(np.zeros((4, 4)), weight, one) == 1, "nothing varies, so nothing is lost"


def test_covariances_are_of_what_each_dense_layer_reads() -> None:
    net = TrainableGraph(Graph.from_model(random_reference("digits-cnn")))
    x = load("digits").normalized("test")[:50].astype(np.float32)
    net.train()
    found = input_covariances(net, x)
    assert net.training and not net.observers and not net.pre_activations
    dense = [n for n in net.graph.nodes if n.op == "dense"]
    assert set(found) == {n.arrays["weight"] for n in dense} != set(net.weight_keys())
    seen = {}
    net.observers = {dense[0].inputs[0]: lambda values: seen.setdefault("x", values)}
    net.eval()(torch.from_numpy(x))
    values = seen["x"].detach().numpy().reshape(50, -1)
    assert found[dense[0].arrays["weight"]] == pytest.approx(np.cov(values.T, ddof=0), rel=1e-3, abs=1e-4)


def test_layers_without_a_covariance_count_by_their_saliency() -> None:
    half = Choice(np.array([[True, False]]), 1.0, 0.7)
    assert unexplained({"w": half}, {"w": np.ones((1, 2))}, {}) == 0.7
    assert unexplained({"w": half}, {"w": np.ones((1, 2))}, {"w": np.eye(2)}) == pytest.approx(
        loss_of(0.5, 1), abs=0.01
    )


def test_divisions_are_the_grids_alone_and_every_length_of_rows() -> None:
    model, table = random_reference("digits-mlp"), load_default("tenseal")
    plan = compile(model, table=table)
    budget = budget_of(model, plan.params.degree, table, price(plan, table).latency_ms)
    (rows,) = (o for several in budget.options.values() for o in several if isinstance(o, RowLayer))
    alone, *gathered = budget.divisions()
    assert not any(isinstance(o, RowLayer) for several in alone[1].options.values() for o in several)
    assert len(gathered) == len(rows.lengths)
    for length, (way, end) in zip(rows.lengths, gathered, strict=True):
        (fixed,), (open_,) = ([o for s in b.options.values() for o in s if isinstance(o, RowLayer)] for b in (end, way))
        assert fixed.lengths == (length,) and open_.lengths[0] == length
    without = budget_of(model, plan.params.degree, table, price(plan, table).latency_ms, gather=False)
    assert len(without.divisions()) == 1
