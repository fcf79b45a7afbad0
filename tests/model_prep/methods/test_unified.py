"""Unified reweighting: one code path for seven structures, caps met exactly, penalties that switch off, integers, CKKS."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from he_runtime import compile
from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel
from he_runtime.plan.counts import layer_counts, leaf_totals
from he_runtime.reference import forward
from model_prep import Recipe, compress
from model_prep.data import Dataset, load
from model_prep.graph import Graph
from model_prep.methods import Unified
from model_prep.packing.packing import packed_classes
from tests.model_prep.methods.column_packing import counted, planned, run_encrypted

SHORT = {"training": {"epochs": 2, "learning_rate": 3e-3}, "retraining": {"epochs": 5, "learning_rate": 3e-3}}


class Net(nn.Module):
    """1x8x8 -> 4x8x8 -> 8x4x4 -> 10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.square(self.conv2(torch.square(self.conv1(x))))
        y: Tensor = self.fc(x.flatten(1))
        return y


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits").subset(700, 200)


@pytest.fixture(scope="module")
def trained(digits: Dataset) -> nn.Module:
    torch.manual_seed(0)
    net = Net()
    recipe = Recipe.from_dict({"name": "net", "teacher": {"epochs": 16, "learning_rate": 3e-3}})
    compress(net, recipe, digits, quiet=True)  # a module given by the caller is trained in place
    return net


def pruned(net: nn.Module, data: Dataset, **settings: Any) -> CompressedModel:
    step = {"method": "unified", **SHORT, **settings}
    return compress(net, Recipe.from_dict({"name": "net", "steps": [step]}), data, quiet=True)


def living_groups(weight: npt.NDArray[np.float64], structure: str) -> tuple[int, int]:
    """(groups with a weight, groups), counted by hand."""
    filters = len(weight)
    if structure == "weight":
        return int(np.count_nonzero(weight)), weight.size
    if structure == "row":
        return int(weight.reshape(filters, -1).any(axis=1).sum()), filters
    if structure == "column":
        alive = weight.any(axis=0)
        return int(alive.sum()), alive.size
    if structure == "kernel":
        alive = weight.reshape(*weight.shape[:2], -1).any(axis=2)
        return int(alive.sum()), alive.size
    if structure == "channel":
        return int(np.moveaxis(weight, 1, 0).reshape(weight.shape[1], -1).any(axis=1).sum()), weight.shape[1]
    matrix = weight.reshape(filters, -1)  # blocks of 2 x 4
    tiles = [matrix[i : i + 2, j : j + 4].any() for i in range(0, filters, 2) for j in range(0, matrix.shape[1], 4)]
    return int(np.sum(tiles)), len(tiles)


@pytest.mark.parametrize("structure", ["weight", "row", "column", "kernel", "channel", "block"])
def test_every_structure_meets_its_caps_exactly(trained: nn.Module, digits: Dataset, structure: str) -> None:
    model = pruned(trained, digits, structure=structure, density=0.5, block=[2, 4])
    report = model.metadata["steps"][0]
    for node in (n for n in model.nodes if "weight" in n.arrays):
        key = node.arrays["weight"]
        alive, groups = living_groups(np.asarray(model.arrays[key], dtype=np.float64), structure)
        if structure == "row" and node.name == "fc":
            assert key not in report["caps"] and alive == groups == 10
        else:
            assert alive == report["caps"][key] == (round(0.5 * groups) if groups > 1 else 1), (structure, key)
            assert report["groups"][key] == groups
    assert model.metadata["accuracy"]["final"] >= model.metadata["accuracy"]["teacher"] - 0.1


def test_diagonals_are_those_of_the_plan(trained: nn.Module, digits: Dataset) -> None:
    model = pruned(trained, digits, structure="diagonal", degree=8192, layers={"conv2": 0.25, "fc": 0.5})
    classes = packed_classes(Graph.from_model(model), 8192)
    plan = compile(model, degrees=(8192,), max_error=1e6)
    products = {name: leaf_totals(counts).get("mul_plain", 0) for name, counts in layer_counts(plan).items()}
    for name, share in (("conv2", 0.25), ("fc", 0.5)):
        key = f"{name}.weight"
        groups = classes[key]
        alive = [g for g in np.unique(groups) if np.asarray(model.arrays[key])[groups == g].any()]
        assert len(alive) == round(share * len(np.unique(groups)))
        assert products[name] == len(alive)


def test_a_layer_within_its_cap_is_no_longer_penalised(trained: nn.Module, digits: Dataset) -> None:
    """With one epoch per round, a round's penalty is on exactly where more groups lived before it than the cap allows."""
    caps, once = {"conv2": 275, "fc": 20}, {"epochs": 1, "learning_rate": 3e-3}
    model = pruned(trained, digits, density=1.0, caps=caps, rounds=4, strength=20.0, training=once)
    rounds = model.metadata["steps"][0]["rounds"]
    assert all(rounds[0]["strengths"][f"{name}.weight"] > 0 for name in caps)  # nothing is dead at the start
    for before, after in pairwise(rounds):
        for name, cap in caps.items():
            assert (after["strengths"][f"{name}.weight"] > 0) == (before["living"][f"{name}.weight"] > cap)
    assert any(r["strengths"]["conv2.weight"] == 0 < r["strengths"]["fc.weight"] for r in rounds)
    assert all(r["strengths"]["conv1.weight"] == 0 for r in rounds)  # density 1: within its cap from the start


def test_the_penalty_makes_the_cut_cheap(trained: nn.Module, digits: Dataset) -> None:
    """What is cut after reweighting holds less of the weights' energy than what a bare cut takes."""
    bare = pruned(trained, digits, density=0.2, strength=1e-9, retraining={"epochs": 0}, rounds=4)
    model = pruned(trained, digits, density=0.2, strength=4.0, retraining={"epochs": 0}, rounds=4)
    assert model.metadata["accuracy"]["final"] >= bare.metadata["accuracy"]["final"] + 0.05


def test_survivors_become_integers_and_zeros_stay(trained: nn.Module, digits: Dataset) -> None:
    settings = {"level_rounds": 4, "level_rho": 0.1, "level_training": {"epochs": 2, "learning_rate": 1e-3}}
    model = pruned(trained, digits, density=0.25, bits=4, **settings)
    report = model.metadata["steps"][0]
    for key, cap in report["caps"].items():
        integers = model.arrays[key]
        assert integers.dtype == np.int8 and np.abs(integers).max() <= 7
        assert np.count_nonzero(integers) == cap  # zero is no level of a survivor
    assert report["bits"] == 4 and report["residuals"][-1] < report["residuals"][0]
    assert model.metadata["accuracy"]["final"] >= model.metadata["accuracy"]["teacher"] - 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"caps": {"conv2": 300}}, r"a cap of weights of 'conv2': got 300, need 1\.\.288; try 288"),
        ({"caps": {"conv2": 0}}, "got 0, need 1..288; try 1"),
        ({"structure": "row", "density": 0.05}, "nearest: a density of 0.25"),
        ({"structure": "row", "layers": {"fc": 0.5}}, r"cannot prune rows of layers \['fc'\]: need some of"),
        ({"structure": "channel", "layers": {"conv1": 0.3}}, "nearest: a density of 1"),
        ({"structure": "block", "block": [16, 8]}, "nearest for all layers: 4 x 8"),
        ({"layers": {"nope": 0.5}}, r"layers \['nope'\]: need some of \['conv1', 'conv2', 'fc'\]"),
        ({"structure": "ring"}, "structure in"),
        ({"bits": 1}, "bits 0 or in 2..12"),
    ],
)
def test_what_cannot_be_met_is_refused(
    trained: nn.Module, digits: Dataset, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        pruned(trained, digits, **settings)


def test_rows_of_a_network_of_outputs_alone_are_refused(digits: Dataset) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ModelError, match=r"cannot prune rows: got none that could go.*hidden layer"):
        pruned(net, digits, structure="row")


def test_every_output_keeps_a_weight(trained: nn.Module, digits: Dataset) -> None:
    """Ten weights for ten outputs: the strongest of each, whatever the others hold. Nine are refused before training."""
    settings = {"rounds": 1, "strength": 1e-9, "training": {"epochs": 0}, "retraining": {"epochs": 0}, "density": 1.0}
    model = pruned(trained, digits, caps={"fc": 10}, **settings)
    dense = np.abs(np.asarray(pruned(trained, digits, **settings).arrays["fc.weight"]))
    kept = np.asarray(model.arrays["fc.weight"]) != 0
    assert (kept.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(kept.argmax(axis=1), dense.argmax(axis=1))
    with pytest.raises(ModelError, match="an output of the network would depend on no input; nearest: 10 groups"):
        pruned(trained, digits, caps={"fc": 9}, **settings)


def test_the_same_settings_serve_a_user_without_a_recipe(trained: nn.Module, digits: Dataset) -> None:
    from model_prep.settings import Training

    method = Unified("weight", 0.3, rounds=1, training=Training(epochs=1), retraining=Training(epochs=1))
    model = compress(trained, method, digits, quiet=True)
    assert model.metadata["steps"][0]["nonzeros"] == sum(
        np.count_nonzero(model.arrays[f"{n}.weight"]) for n in ("conv1", "conv2", "fc")
    )


def test_rows_save_activations_and_what_reads_them_under_encryption(trained: nn.Module, digits: Dataset) -> None:
    model = pruned(trained, digits, structure="row", density=0.5)
    expected = counted(model)
    # 2 of 4 filters on 8x8, 4 of 8 on 4x4: every second activation, and of conv2's products a quarter.
    squares = [expected[n.name] for n in model.nodes if n.op == "quadratic"]
    assert squares == [2 * 64, 4 * 16]
    assert expected["conv2"] == 4 * 2 * 121 and expected["fc"] == 10 * 64  # 121 of 9 * 16 taps lie inside 8x8
    x = digits.normalized("test")[:100]
    found = run_encrypted(model, x)
    assert planned(found.plan) == expected
    assert (found.outputs.argmax(1) == forward(model, x.astype(np.float64)).argmax(1)).sum() >= 99
    # The strict bound was passed by up to 4 % in 2 of 5 runs, on tenseal and native: sigma is predicted over all images,
    # and squares give some of them more. The allowance is that of test_native_plans.py.
    assert 0 < found.error <= 1.5 * found.plan.error_bound


def test_weights_save_products_one_to_one(trained: nn.Module, digits: Dataset) -> None:
    model = pruned(trained, digits, structure="weight", density=0.15)
    plan = compile(model, degrees=(8192,), max_error=1e6, batch=4096)
    assert planned(plan) == counted(model)
    assert counted(model)["fc"] <= round(0.15 * 1280)
