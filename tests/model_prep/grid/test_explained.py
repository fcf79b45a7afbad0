"""What kept weights explain: against least squares on samples, between its limits, and as the measure that divides a budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime import compile, price
from he_runtime.cost import load_default
from model_prep.data import load
from model_prep.graph import LINEAR_OPS, Graph
from model_prep.grid.budget import budget_of
from model_prep.grid.explained import explained_share, input_covariances, outputs_of, unexplained
from model_prep.grid.layer import Choice, loss_of
from model_prep.grid.rows import RowLayer
from model_prep.reference_models import random_reference
from model_prep.trainable import TrainableGraph
from tests.he_runtime.networks import Builder


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 9))
def test_it_is_what_least_squares_explains(seed: int, outputs: int, inputs: int) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((200, inputs)) @ random.standard_normal((inputs, inputs)) + 3.0
    weight, keep = random.standard_normal((outputs, inputs)), random.random((outputs, inputs)) < 0.5
    centred, left = x - x.mean(axis=0), 0.0
    ridge = np.sqrt(1e-3 * (centred**2).sum() / inputs) * np.eye(inputs)  # as rows of a least-squares problem
    for row, kept in zip(weight, keep, strict=True):
        y = centred @ row
        if kept.all():  # nothing is to be fitted
            left += float(y @ y)
            continue
        rows, values = np.vstack([centred, ridge])[:, kept], np.append(y, np.zeros(inputs))
        left += float(y @ centred[:, kept] @ np.linalg.lstsq(rows, values, rcond=None)[0])
    wanted = left / float(((centred @ weight.T) ** 2).sum())
    found = explained_share(np.cov(x, rowvar=False, ddof=0), weight, keep)
    assert found == pytest.approx(wanted, abs=1e-6) and 0 <= found <= 1
    more = keep | (random.random(keep.shape) < 0.5)
    assert explained_share(np.cov(x, rowvar=False, ddof=0), weight, more) >= found - 1e-3


def test_of_equal_inputs_one_stands_for_all_and_of_unrelated_ones_none_does() -> None:
    weight, one = np.ones((1, 4)), np.array([[True, False, False, False]])
    assert explained_share(np.ones((4, 4)), weight, one) == pytest.approx(1, abs=0.01)
    assert explained_share(np.eye(4), weight, one) == pytest.approx(0.25, abs=0.01)
    assert explained_share(np.eye(4), weight, ~one & one) == 0
    assert explained_share(np.eye(4), weight, one | ~one) == 1
    assert explained_share(np.zeros((4, 4)), weight, one) == 1, "nothing varies, so nothing is lost"


def test_covariances_are_of_what_each_layer_sums_over() -> None:
    """A layer's outputs w x have the covariance w C w', whatever the layer."""
    net = TrainableGraph(Graph.from_model(random_reference("digits-cnn")))
    x = load("digits").normalized("test")[:50].astype(np.float32)
    net.train()
    found = input_covariances(net, x)
    assert net.training and not net.observers and not net.pre_activations
    layers = {n.arrays["weight"]: n for n in net.graph.nodes if n.op in LINEAR_OPS}
    assert set(found) == set(layers) == set(net.weight_keys())
    outputs = outputs_of(net, {node.name for node in layers.values()}, x)
    for key, node in layers.items():
        weight = net.graph.array(node, "weight").reshape(len(outputs[node.name][0]), -1)
        values = np.moveaxis(outputs[node.name], 1, 0).reshape(len(weight), -1)
        assert weight @ found[key] @ weight.T == pytest.approx(np.cov(values, ddof=0), rel=1e-3, abs=1e-4)


def test_wide_layers_and_grouped_convolutions_have_no_covariance() -> None:
    wide, grouped = Builder((4200,)), Builder((4, 6, 6))
    wide.dense(4200, 2)
    grouped.conv((4, 6, 6), 4, 3, 1, 0, groups=2)
    for builder in (wide, grouped):
        net = TrainableGraph(Graph.from_model(builder.calibrated()))
        assert input_covariances(net, builder.inputs(3).astype(np.float32)) == {}


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
