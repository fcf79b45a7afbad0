"""Trace pruning: channels cut out, then eight bits, run encrypted; counters from the channels that are left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel
from he_runtime.reference import forward
from model_prep import Recipe, compress
from model_prep.channels.hessian import Traces
from model_prep.data import Dataset, load
from model_prep.methods import METHODS, TracePruning, trace
from model_prep.trainable import TrainableGraph
from tests.model_prep.channel_networks import Residual
from tests.model_prep.methods.one_feature import run, uses

CHANNELS = {"conv1": 8, "conv2": 16}
SIDES = {"conv1": (8, 1, 1), "conv2": (8, 2, 1), "fc": (0, 1, 0)}  # of the image read, stride, padding


def recipe(*steps: dict[str, Any]) -> Recipe:
    """digits-cnn, trained for seconds."""
    teacher = {"epochs": 10, "learning_rate": 5e-3}
    return Recipe.from_dict({"name": "trace", "network": "digits-cnn", "teacher": teacher, "steps": list(steps)})


TRAINING = {"epochs": 6, "learning_rate": 4e-3}
QUADRATICS = {"method": "quadratics", "training": TRAINING}
TRACE = {"method": "trace", "samples": 256, "probes": 40, "precision": "bf16", "training": TRAINING}
INTEGERS = {"method": "integers", "activation_bits": 8, "training": {"epochs": 1, "learning_rate": 2e-4}}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


@pytest.fixture(scope="module")
def model(digits: Dataset) -> CompressedModel:
    return compress(None, recipe(QUADRATICS, TRACE, INTEGERS), digits, quiet=True)


def step(model: CompressedModel, name: str = "trace") -> dict[str, Any]:
    (found,) = (s for s in model.metadata["steps"] if s["method"] == name)
    return dict(found)


def layer_weights(model: CompressedModel) -> dict[str, np.ndarray]:
    return {n.name: model.arrays[n.arrays["weight"]] for n in model.nodes if "weight" in n.arrays}


def test_half_of_the_channels_are_gone_and_not_only_zero(model: CompressedModel) -> None:
    said, weights = step(model), layer_weights(model)
    kept = {name: len(weights[name]) for name in CHANNELS}
    assert sum(kept.values()) == 12 and said["removed"] == 0.5
    assert said["channels"] == {name: [kept[name], count] for name, count in CHANNELS.items()}
    assert all(kept[name] >= np.ceil(0.4 * count) for name, count in CHANNELS.items())
    shapes = {"conv1": (kept["conv1"], 1, 3, 3), "conv2": (kept["conv2"], kept["conv1"], 3, 3), "fc": (10,)}
    assert {name: w.shape for name, w in weights.items()} == {**shapes, "fc": (10, 16 * kept["conv2"])}
    assert said["nonzeros"] == sum(w.size for w in weights.values())
    dense = {"conv1": 72, "conv2": 1152, "fc": 2560}
    assert said["density"] == said["nonzeros"] / sum(dense.values())
    positions = {"conv1": 64, "conv2": 16, "fc": 1}
    products_left, products_before = (
        sum(sizes[name] * positions[name] for name in dense)
        for sizes in ({n: w.size for n, w in weights.items()}, dense)
    )
    assert said["multiply_add_density"] == products_left / products_before


def test_the_network_still_classifies_and_activations_had_a_grid(model: CompressedModel) -> None:
    accuracy = model.metadata["accuracy"]
    assert list(accuracy) == ["teacher", "quadratics", "trace", "integers", "final"]
    assert accuracy["final"] >= 0.93 and accuracy["final"] >= accuracy["quadratics"] - 0.04
    ranges = step(model, "integers")["ranges"]
    assert len(ranges) == 2 and all(low <= 0 < high and high != -low for low, high in ranges.values())
    assert step(model)["precision"] == "bf16" and 1 < step(model)["probes"] <= 40


def test_encrypted_it_decides_alike_and_costs_what_its_channels_cost(model: CompressedModel, digits: Dataset) -> None:
    images = digits.normalized("test")[:100].astype(np.float64)
    encrypted, clear = run(model, images), forward(model, images)
    errors = np.abs(encrypted.logits - clear)
    assert (encrypted.logits.argmax(1) == clear.argmax(1)).sum() >= 99
    assert 0 < errors.max() <= 1.5 * encrypted.plan.error_bound  # six sigmas over all images; single ones have more
    weights = layer_weights(model)
    one, two = (len(weights[name]) for name in CHANNELS)
    assert encrypted.totals["square"] == one * 8 * 8 + two * 4 * 4
    # Along each axis the three taps of conv1 meet 7, 8 and 7 pixels, and those of conv2, two apart, 3, 4 and 4.
    everything = one * (7 + 8 + 7) ** 2 + one * two * (3 + 4 + 4) ** 2 + two * 16 * 10
    zeros, signs = (sum(uses(abs(w) == level, *SIDES[name]) for name, w in weights.items()) for level in (0, 1))
    assert encrypted.totals["mul_plain"] == everything - zeros - signs  # by one step nothing is multiplied
    assert zeros + signs < 0.1 * everything
    assert everything < 0.52 * (8 * 22**2 + 8 * 16 * 11**2 + 16 * 16 * 10)
    assert "rotate" not in encrypted.totals


def untrained(settings: dict[str, Any], module: nn.Module | None, data: Dataset) -> CompressedModel:
    if module is not None:
        torch.manual_seed(0)
        return compress(module, Recipe.from_dict({"name": "t", "steps": [settings]}), data, quiet=True)
    return compress(
        None, Recipe.from_dict({"name": "t", "network": "digits-cnn", "steps": [settings]}), data, quiet=True
    )


@pytest.fixture(scope="module")
def few(digits: Dataset) -> Dataset:
    return digits.subset(64, 32)


PROBED = {"method": "trace", "samples": 32, "probes": 2}


def test_what_is_probed_is_the_network_that_will_run(few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainableGraph] = []

    def watched(net: TrainableGraph, *rest: Any) -> Traces:
        seen.append(net)
        return before(net, *rest)

    before: Callable[..., Traces] = trace.channel_traces
    monkeypatch.setattr(trace, "channel_traces", watched)
    untrained(PROBED, None, few)
    (net,) = seen
    assert [n.op for n in net.graph.nodes if n.op not in ("conv2d", "dense", "reshape")] == ["quadratic", "quadratic"]


def test_of_each_layer_at_most_the_limit_goes(few: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores in which every channel of conv2 is worse than any of conv1."""

    def scores(_: TrainableGraph, traces: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {key: np.arange(len(t)) + 100.0 * (len(t) == 8) for key, t in traces.items()}

    monkeypatch.setattr(trace, "channel_sensitivity", scores)
    for limit, kept in ((0.95, (8, 4)), (0.6, (5, 7)), (0.0, (5, 7)), (0.5, (4, 8))):
        model = untrained({**PROBED, "limit": limit}, None, few)
        assert [count for count, _ in step(model)["channels"].values()] == list(kept)
        # The best of a layer stay: here the last ones.
        assert step(model)["parameters"] == {"ratio": 0.5, "limit": pytest.approx(limit or 0.6)}


def test_a_sum_holds_channels_back_and_the_report_says_so(digits: Dataset) -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(64, 2, 6, 6)).astype(np.float32)
    labels = rng.integers(0, 3, size=64)
    data = Dataset("noise", images, labels, images[:8], labels[:8], (0.0, 0.0), (1.0, 1.0), ("a", "b", "c"))
    said = step(untrained({**PROBED, "limit": 0.95}, Residual(), data))
    assert said["channels"]["c1"] == said["channels"]["c3"] == said["channels"]["skip"]
    left = sum(count for count, _ in said["channels"].values())
    assert said["removed"] == pytest.approx(1 - left / (6 + 4 + 6 + 6)) and said["removed"] < 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 0.8, "limit": 0.5}, r"at most 12 .* try a ratio of 0\.5$"),
        ({"ratio": 1.0}, "ratio in"),
        ({"limit": 1.1}, "limit in"),
        ({"samples": 0}, "samples > 0"),
        ({"precision": "fp8"}, "need one of .*'fp16-emulated'"),
        ({"probes": 0}, "need at least 1"),
    ],
)
def test_what_cannot_be_met_is_refused_before_any_probing(
    settings: dict[str, Any], message: str, few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "channel_traces", None)
    with pytest.raises(ModelError, match=message):
        untrained({"method": "trace", **settings}, None, few)


def test_the_nearest_ratio_is_met(few: Dataset) -> None:
    assert step(untrained({**PROBED, "ratio": 0.5, "limit": 0.5}, None, few))["removed"] == 0.5


def test_a_network_without_a_hidden_layer_is_refused(few: Dataset) -> None:
    with pytest.raises(ModelError, match="hidden layer"):
        untrained({"method": "trace"}, nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), few)


def test_after_integers_it_comes_too_late(few: Dataset) -> None:
    steps = [{"method": "integers"}, {"method": "trace"}]
    with pytest.raises(ModelError, match="try it earlier"):
        compress(None, Recipe.from_dict({"name": "t", "network": "digits-cnn", "steps": steps}), few, quiet=True)


def test_the_card_names_structure_and_source() -> None:
    assert METHODS["trace"] is TracePruning
    assert "channels" in TracePruning.card.structure and "2306.07030" in TracePruning.card.source
