"""Lines in place of activations: how near they come, and that merging changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from he_runtime.cost import load_default
from he_runtime.errors import ModelError
from model_prep.data import load
from model_prep.graph import Graph
from model_prep.grid.pricing import Pricing
from model_prep.grid.removal import lines, without
from model_prep.grid.start import Search
from model_prep.reference_models import random_reference
from model_prep.stage import Stage
from model_prep.train import predict
from model_prep.trainable import Site, TrainableGraph
from tests.he_runtime.networks import Builder


def deep(a: float) -> tuple[TrainableGraph, np.ndarray]:
    """Three dense layers with a x^2 + 2 x - 1 between, in place of two activations."""
    builder = Builder((12,))
    for size in (10, 8):
        builder.dense(12 if size == 10 else 10, size)
        builder.add("quadratic", (size,), a=np.full(size, a), b=np.full(size, 2.0), c=np.full(size, -1.0))
    builder.dense(8, 3)
    graph = Graph.from_model(builder.calibrated())
    quadratics = [n for n in graph.nodes if n.op == "quadratic"]
    sites = {n.name: Site({"function": "relu"}, np.ones(n.shape[0]), 1.0) for n in quadratics}
    return TrainableGraph(graph, sites), builder.inputs(200).astype(np.float32)


def test_a_line_is_nearest_to_itself_and_merging_changes_nothing() -> None:
    net, x = deep(0.0)
    before = predict(net, x)
    found = lines(net, x)
    assert set(found) == set(net.sites)
    for line in found.values():
        np.testing.assert_allclose(line.scale, 2.0, atol=1e-4)
        np.testing.assert_allclose(line.shift, -1.0, atol=1e-3)
        assert line.lost == pytest.approx(0, abs=1e-6)
    first, second = net.sites
    merged = without(net, {first: found[first]}, x, lambda graph: 0.0)
    assert [n.op for n in merged.graph.nodes] == ["dense", "quadratic", "dense"] and set(merged.sites) == {second}
    np.testing.assert_allclose(predict(merged, x), before, rtol=1e-3, atol=1e-3)
    assert [n.op for n in without(net, found, x, lambda graph: 0.0).graph.nodes] == ["dense"]


def test_what_is_lost_is_the_share_that_no_line_explains() -> None:
    net, x = deep(0.7)
    name = next(iter(net.sites))
    net.eval()(torch.from_numpy(x))
    inputs = net.pre_activations[name].detach().double().numpy()
    outputs = 0.7 * inputs**2 + 2 * inputs - 1
    unexplained = sum(np.polyfit(u, v, 1, full=True)[1][0] for u, v in zip(inputs.T, outputs.T, strict=True)) / len(x)
    line = lines(net, x)[name]
    assert line.lost == pytest.approx(-np.log(1 - unexplained / outputs.var(0).sum()), rel=1e-4) and line.lost > 0.01
    assert net.sites and not net.observers, "the network is left as it was"


def test_squares_that_the_user_wrote_stay() -> None:
    net, x = deep(0.7)
    assert lines(TrainableGraph(net.graph), x) == {}


@pytest.fixture(scope="module")
def stage() -> Stage:
    """A reference network whose squares stand for activations."""
    model, data = random_reference("digits-mlp"), load("digits")
    graph = Graph.from_model(model)
    sites = {
        n.name: Site({"function": "relu"}, np.ones(graph.array(n, "a").shape), 10.0)
        for n in graph.nodes
        if n.op == "quadratic"
    }
    assert sites
    x, y = data.normalized("train").astype(np.float32), data.y_train
    net = TrainableGraph(graph, sites)
    return Stage("s", net, net, model.input, model.output.labels, x, y, x[:50], y[:50])


def test_removal_is_worth_it_where_pruning_would_lose_more(stage: Stage) -> None:
    dense = Pricing(stage, load_default("tenseal"), 8192)
    dense_ms = dense.of({})
    loose, tight = (Search(dense, share * dense_ms).run([4096, 8192]) for share in (1.0, 0.4))
    kept = Search(dense, 0.4 * dense_ms, removal=False).run([4096, 8192])
    assert loose.removed == () and len(tight.removed) >= 1 and kept.removed == ()
    assert tight.loss < kept.loss and tight.removal_loss > 0
    assert set(tight.pricing.stage.net.sites) == set(stage.net.sites) - set(tight.removed)
    assert set(stage.net.sites) == set(dense.stage.net.sites), "the stage's own network is not touched"


def test_pruned_networks_and_given_rows_keep_their_activations(stage: Stage) -> None:
    net = TrainableGraph(stage.net.graph, stage.net.sites)
    net.masks = {"fc1.weight": torch.ones(net.graph.arrays["fc1.weight"].shape, dtype=torch.bool)}
    pruned = Pricing(replace(stage, net=net), load_default("tenseal"), 8192)
    target = 0.4 * pruned.of({})
    assert Search(pruned, target).run([4096, 8192]).removed == ()
    whole = Pricing(stage, load_default("tenseal"), 8192)
    assert Search(whole, 0.6 * whole.of({}), rows=8).run([4096, 8192]).removed == ()


def test_a_floor_is_that_of_the_cheapest_network_that_was_tried(stage: Stage) -> None:
    dense = Pricing(stage, load_default("tenseal"), 8192)
    with pytest.raises(ModelError, match=r"cannot prune to 0.01 ms: .* need at least ([\d.]+) ms") as refused:
        Search(dense, 0.01).run([4096, 8192])
    with pytest.raises(ModelError) as without_removal:
        Search(dense, 0.01, removal=False).run([4096, 8192])
    assert str(refused.value) != str(without_removal.value)
