"""Crossbar ADMM: whole crossbars, device levels, the mismatch study, costs by hand, refusals, and a run under encryption."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel
from he_runtime.reference import forward
from model_prep import Recipe, compress
from model_prep.crossbar_devices import ADC_JOULES, DAC_JOULES, READ_SECONDS, READ_VOLTS, array_cost, mismatch_study
from model_prep.data import Dataset, load
from model_prep.methods import CrossbarAdmm
from model_prep.quantizers import DeviceLevels, Quantized
from model_prep.structures import Layer
from tests.model_prep.methods.column_packing import counted, planned, run_encrypted

SHORT: dict[str, Any] = {
    "rounds": 4,
    "rho": 0.2,
    "level_rho": 0.2,
    "training": {"epochs": 3, "learning_rate": 3e-3, "batch_size": 32},
    "retraining": {"epochs": 10, "learning_rate": 3e-3, "batch_size": 32},
    "mapping": {"epochs": 3, "learning_rate": 1e-3, "batch_size": 32},
}
NONE: dict[str, Any] = {"rounds": 0, **{run: {"epochs": 0} for run in ("training", "retraining", "mapping")}}
NAMES = ("fc1", "fc2", "fc3")


class Net(nn.Module):
    """64-32-32-10."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.square(self.fc2(torch.square(self.fc1(x.flatten(1)))))
        y: Tensor = self.fc3(x)
        return y


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits").subset(700, 200)


@pytest.fixture(scope="module")
def trained(digits: Dataset) -> nn.Module:
    torch.manual_seed(0)
    net = Net()
    recipe = Recipe.from_dict({"name": "net", "teacher": {"epochs": 25, "learning_rate": 3e-3}})
    compress(net, recipe, digits, quiet=True)
    return net


def pruned(net: nn.Module, data: Dataset, **settings: Any) -> CompressedModel:
    step = {"method": "crossbars", **SHORT, **settings}
    return compress(net, Recipe.from_dict({"name": "net", "steps": [step]}), data, quiet=True)


@pytest.fixture(scope="module")
def pair(trained: nn.Module, digits: Dataset) -> CompressedModel:
    return pruned(trained, digits)


def kept(model: CompressedModel, name: str) -> tuple[int, int]:
    """Filters and columns of the matrix that are not empty."""
    weight = np.asarray(model.arrays[f"{name}.weight"])
    return int(weight.any(axis=1).sum()), int(weight.any(axis=0).sum())


def test_filters_and_columns_stay_in_multiples_of_the_crossbar(pair: CompressedModel) -> None:
    report, total = pair.metadata["steps"][0], {"fc1": 4 * 8, "fc2": 4 * 4, "fc3": 2 * 4}
    for name in NAMES:
        filters, columns = kept(pair, name)
        if name == "fc3":
            assert filters == 10 and columns == 8  # the outputs stay; one of four columns of crossbars
        else:
            assert filters % 8 == 0 and columns % 8 == 0 and filters * columns // 64 <= total[name] // 4
        # A pair is two crossbars of devices.
        assert report["layer_crossbars"][f"{name}.weight"] == 2 * -(-filters // 8) * (columns // 8)
    assert report["crossbars_before"] == 2 * sum(total.values())
    assert report["crossbars"] == sum(report["layer_crossbars"].values())
    assert report["area_ratio"] == report["crossbars_before"] / report["crossbars"] >= 4
    assert report["power_ratio"] > 2


def test_a_pair_exports_integers_of_its_levels(pair: CompressedModel) -> None:
    for name in NAMES:
        integers = pair.arrays[f"{name}.weight"]
        assert integers.dtype == np.int8 and np.abs(integers).max() <= 2**4 - 1
        assert pair.quantization[f"{name}.weight"] > 0
    residuals = pair.metadata["steps"][0]["residuals"]
    for split in ("crossbars", "levels"):
        first, last = (max(v for k, v in r.items() if k.endswith(f"/{split}")) for r in (residuals[0], residuals[-1]))
        assert last < first


def test_a_single_device_holds_one_of_its_conductances(trained: nn.Module, digits: Dataset) -> None:
    """Zero exists only through pruning: what a kept crossbar holds is at least the lowest conductance."""
    model = pruned(trained, digits, mode="single", low=5e-5, high=5e-4, bits=3, rounds=1)
    conductances = np.linspace(5e-5, 5e-4, 8)
    for name in NAMES:
        weight, (filters, columns) = np.abs(np.asarray(model.arrays[f"{name}.weight"])), kept(model, name)
        assert np.count_nonzero(weight) == filters * columns
        levels = np.unique(np.round(weight[weight > 0] / weight.max(), 5))
        assert len(levels) <= 8
        scales = weight.max() / conductances  # the largest weight is on some level
        gaps = [np.abs(levels[:, None] * weight.max() / s - conductances).min(axis=1).max() for s in scales]
        assert min(gaps) < 1e-5 * conductances[-1]
    assert not model.quantization


def test_training_is_worth_more_than_one_cut(trained: nn.Module, digits: Dataset, pair: CompressedModel) -> None:
    once = pruned(trained, digits, **NONE)
    assert {n: kept(once, n) for n in NAMES}["fc3"] == (10, 8)
    assert pair.metadata["accuracy"]["final"] >= once.metadata["accuracy"]["final"] + 0.2


def test_one_cut_is_the_heaviest_submatrix_on_the_nearest_levels(digits: Dataset) -> None:
    """A block-diagonal layer whose best quarter is known, and weights that are levels already."""
    layer = nn.Linear(64, 16)
    other = nn.Linear(16, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.full((16, 64), 0.01))
        layer.weight[:8, 16:32] = torch.arange(128.0).reshape(8, 16) % 15 + 1
    net = nn.Sequential(nn.Flatten(), layer, other)
    settings = {**NONE, "layers": {"1": 2 / 16, "2": 1.0}}
    model = pruned(net, digits, **settings)
    key = next(k for k, v in model.arrays.items() if v.shape == (16, 64))
    expected = np.zeros((16, 64))
    expected[:8, 16:32] = np.arange(128).reshape(8, 16) % 15 + 1
    np.testing.assert_allclose(model.arrays[key] * model.quantization[key], expected, rtol=1e-5)


def test_costs_are_the_formula() -> None:
    devices, layer = DeviceLevels(bits=2, low=1.0, high=4.0), Layer("w", "conv2d", (4, 2, 1, 2), positions=9)
    levels = np.array([[0, 0, 1, -3], [0, 0, 0, 0], [2, 0, 0, 1], [0, 0, 0, 0]])
    cost = array_cost(Quantized(levels.reshape(layer.shape), 0.5), layer, (2, 2), devices)
    # Two filters and three columns are left: two crossbars side by side, each of a pair.
    siemens = sum(1.0 + abs(k) + 1.0 for k in (0, 1, -3, 2, 0, 1))  # the idle device of each stays at 1
    energy = 9 * (2 * 2 * ADC_JOULES + 3 * 1 * DAC_JOULES + siemens * READ_VOLTS**2 * READ_SECONDS)
    assert cost.crossbars == 2 * 2 and cost.energy == pytest.approx(energy)
    single = DeviceLevels(bits=2, mode="single", low=1.0, high=4.0)
    assert array_cost(Quantized(levels.reshape(layer.shape), 0.5), layer, (2, 2), single).crossbars == 2


def test_mismatch_lowers_accuracy_with_its_size(pair: CompressedModel, digits: Dataset) -> None:
    x, y = digits.normalized("test").astype(np.float64), digits.y_test
    devices = CrossbarAdmm().devices
    found = mismatch_study(pair, devices, x, y, (0.0, 0.1, 0.6))
    assert {s: a.shape for s, a in found.items()} == {0.0: (20,), 0.1: (20,), 0.6: (20,)}
    assert set(found[0.0]) == {pair.metadata["accuracy"]["final"]}
    assert found[0.6].mean() < found[0.1].mean() <= found[0.0].mean() + 0.01
    again = mismatch_study(pair, devices, x, y, (0.1,), seed=0)
    np.testing.assert_array_equal(again[0.1], found[0.1])
    log = mismatch_study(pair, devices, x, y, (0.0, 0.6), distribution="log-normal", draws=3)
    assert set(log[0.0]) == set(found[0.0]) and log[0.6].mean() < found[0.0].mean()


def test_a_disturbed_pair_is_two_devices_off(pair: CompressedModel) -> None:
    """The spread of a level k: sigma * step * sqrt((k + g)^2 + g^2), g the idle conductance in steps."""
    from model_prep.crossbar_devices import _disturbed

    devices, sigma = DeviceLevels(bits=4, low=1e-4, high=4e-4), 0.05
    model = pair.with_(arrays={**pair.arrays, "fc1.weight": np.full((200, 200), 6, dtype=np.int8)})
    weights = _disturbed(model, "fc1.weight", devices, sigma, np.random.default_rng(0), "normal")
    step, idle = pair.quantization["fc1.weight"], 1e-4 / (3e-4 / 15)
    assert weights.mean() == pytest.approx(6 * step, rel=0.01)
    assert weights.std() == pytest.approx(sigma * step * np.hypot(6 + idle, idle), rel=0.02)


def test_training_with_noise_changes_the_network_and_leaves_none_behind(trained: nn.Module, digits: Dataset) -> None:
    once = {**NONE, "retraining": {"epochs": 2, "learning_rate": 2e-3}, "mapping": {"epochs": 1}}
    model, again = (pruned(trained, digits, noise=0.1, **once) for _ in range(2))
    quiet = pruned(trained, digits, **once)
    assert not np.array_equal(model.arrays["fc1.bias"], quiet.arrays["fc1.bias"])
    assert all(np.array_equal(model.arrays[f"{n}.weight"], again.arrays[f"{n}.weight"]) for n in NAMES)
    assert model.metadata["accuracy"]["crossbars"] == pytest.approx(model.metadata["accuracy"]["final"], abs=0.006)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 128, "columns": 128}, "every layer fits one, the largest is 32 x 64; nearest: 32 x 63"),
        ({"density": 0.02}, "'fc2': it has 16 to choose from, need at least one; nearest: a density of 0.0625"),
        ({"layers": {"fc3": 0.1}}, "'fc3': it has 4 to choose from, need at least one; nearest: a density of 0.25"),
        ({"rows": 32, "columns": 32, "density": 0.5, "layers": {"fc2": 0.4}}, "nearest: a density of 1"),
        ({"layers": {"nope": 0.5}}, r"layers \['nope'\]: need some of \['fc1', 'fc2', 'fc3'\]"),
        ({"mode": "triple"}, "mode 'pair' or 'single'"),
        ({"shares": [0.5, 0.4]}, "rising shares"),
        ({"density": 0.0}, r"densities in \(0, 1\]"),
    ],
)
def test_what_cannot_be_met_is_refused(
    trained: nn.Module, digits: Dataset, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        pruned(trained, digits, **settings)


def test_a_study_of_what_was_not_measured_is_refused(pair: CompressedModel, digits: Dataset) -> None:
    x, y = digits.normalized("test").astype(np.float64), digits.y_test
    with pytest.raises(ModelError, match="have no step"):
        mismatch_study(pair.with_(quantization={}), CrossbarAdmm().devices, x, y)
    with pytest.raises(ModelError, match="cannot study mismatch: got 'uniform'"):
        mismatch_study(pair, CrossbarAdmm().devices, x, y, distribution="uniform")


def test_products_are_the_levels_left_under_encryption(pair: CompressedModel, digits: Dataset) -> None:
    expected = counted(pair)
    first = np.asarray(pair.arrays["fc1.weight"]) != 0
    alive = first.any(axis=1)
    assert expected["fc1"] == first.sum()
    second = (np.asarray(pair.arrays["fc2.weight"]) != 0) & alive  # a dead neuron is no ciphertext
    assert expected["fc2"] == second.sum()
    assert expected["fc3"] == ((np.asarray(pair.arrays["fc3.weight"]) != 0) & second.any(axis=1)).sum()
    x = digits.normalized("test")[:100]
    found = run_encrypted(pair, x)
    assert planned(found.plan) == expected
    assert (found.outputs.argmax(1) == forward(pair, x.astype(np.float64)).argmax(1)).sum() >= 99
    # A thousand outputs, of images that calibration did not see.
    assert 0 < found.error <= 1.5 * found.plan.error_bound
