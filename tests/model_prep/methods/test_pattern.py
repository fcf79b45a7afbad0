"""Kernel patterns: the library, exact kernels, chosen anew at every update, refusals, and products under encryption."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from he_runtime import compile
from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel
from he_runtime.plan.counts import layer_counts, leaf_totals
from he_runtime.reference import forward
from model_prep import Recipe, compress
from model_prep.cores import admm as admm_module
from model_prep.data import Dataset, load
from model_prep.methods import pattern
from model_prep.structures import decode_kernels, encode_kernels
from tests.model_prep.methods.column_packing import counted, planned, run_encrypted

SHORT = {
    "rounds": 3,
    "training": {"epochs": 2, "learning_rate": 3e-3},
    "retraining": {"epochs": 5, "learning_rate": 3e-3},
}


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
def trained(digits: Dataset) -> Net:
    torch.manual_seed(0)
    net = Net()
    recipe = Recipe.from_dict({"name": "net", "teacher": {"epochs": 16, "learning_rate": 3e-3}})
    compress(net, recipe, digits, quiet=True)
    return net


def pruned(net: nn.Module, data: Dataset, **settings: Any) -> CompressedModel:
    step = {"method": "patterns", **SHORT, **settings}
    return compress(net, Recipe.from_dict({"name": "net", "steps": [step]}), data, quiet=True)


def kernels(model: CompressedModel, name: str) -> npt.NDArray[np.bool_]:
    """(out, in, 3, 3), True where a weight is."""
    return np.asarray(np.not_equal(model.arrays[f"{name}.weight"], 0), dtype=np.bool_)


def library(model: CompressedModel) -> set[bytes]:
    return {np.array(p, dtype=np.bool_).tobytes() for p in model.metadata["steps"][0]["library"]["3x3"]}


@pytest.mark.parametrize("assignment", ["kernel", "input_channel"])
@pytest.mark.parametrize(("connectivity", "per_filter"), [(1.0, False), (0.5, False), (0.5, True)])
def test_every_surviving_kernel_has_a_pattern(
    trained: nn.Module, digits: Dataset, assignment: str, connectivity: float, per_filter: bool
) -> None:
    settings = {"connectivity": connectivity, "layers": {"conv1": 1.0}, "per_filter": per_filter}
    model = pruned(trained, digits, size=4, assignment=assignment, **settings)
    patterns = library(model)
    assert 1 <= len(patterns) <= 4
    for name, share in (("conv1", 1.0), ("conv2", connectivity)):
        kept = kernels(model, name)
        alive = np.asarray(kept.any(axis=(2, 3)))
        assert alive.sum() == round(share * alive.size)
        assert (kept.sum(axis=(2, 3))[alive] == 4).all() and kept[alive][:, 1, 1].all()
        assert {k.tobytes() for k in kept[alive]} <= patterns
        if per_filter and name == "conv2":
            assert (alive.sum(axis=1) == 2).all()
        if assignment == "input_channel":
            assert all(len({k.tobytes() for k in kept[alive[:, c], c]}) <= 1 for c in range(kept.shape[1]))
    assert np.asarray(model.arrays["fc.weight"]).all()
    assert model.metadata["accuracy"]["final"] >= model.metadata["accuracy"]["teacher"] - 0.1


def test_the_library_is_the_networks_own(trained: Net, digits: Dataset) -> None:
    """Counted by hand: the four largest of each kernel, the centre among them."""
    weights = [layer.detach().numpy() for layer in (trained.conv1.weight, trained.conv2.weight)]
    seen: dict[bytes, int] = {}
    for kernel in np.concatenate([np.abs(w).reshape(-1, 9) for w in weights]):
        kernel[4] = np.inf
        mask = np.zeros(9, dtype=np.bool_)
        mask[np.argsort(-kernel, kind="stable")[:4]] = True
        seen[mask.tobytes()] = seen.get(mask.tobytes(), 0) + 1
    found = library(pruned(trained, digits, size=5, rounds=1, training={"epochs": 0}, retraining={"epochs": 0}))
    fewest = sorted(seen.values(), reverse=True)[len(found) - 1]
    assert len(found) == 5 and {p for p, n in seen.items() if n > fewest} <= found <= set(seen)
    drawn = library(pruned(trained, digits, size=5, library="random", rounds=1, retraining={"epochs": 0}))
    assert len(drawn) == 5 and drawn != found


def test_patterns_are_chosen_anew_at_every_update(
    trained: nn.Module, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each projection is that of the moment's weights, and some kernel changes its pattern on the way."""
    chosen: list[np.ndarray] = []
    run = admm_module.admm

    def watched(session: Any, projections: Any, settings: Any, **options: Any) -> Any:
        split = projections["conv2.weight"]

        def project(values: np.ndarray) -> np.ndarray:
            result = np.asarray(split.project(values))
            assert (
                np.linalg.norm(values - result) <= np.linalg.norm(values)
                and (result[result != 0] == values[result != 0]).all()
            )
            chosen.append(result != 0)
            return result

        others = {k: v for k, v in projections.items() if k != "conv2.weight"}
        return run(session, {**others, "conv2.weight": project}, settings, **options)

    monkeypatch.setattr(pattern, "admm", watched)
    model = pruned(trained, digits, connectivity=0.5, layers={"conv1": 1.0})
    assert len(chosen) == 1 + 3 + 1  # the start, every update, the hard cut
    assert any((a != b).any() for a, b in pairwise(chosen))
    np.testing.assert_array_equal(kernels(model, "conv2"), chosen[-1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"connectivity": 0.01}, "nearest: a connectivity of 0.25"),  # conv1 has 4 kernels
        ({"layers": {"conv2": 0.01}}, "nearest: a connectivity of 0.03125"),
        (
            {"per_filter": True, "connectivity": 0.1, "layers": {"conv1": 1.0}},
            "each filter of 'conv2'.*nearest: a connectivity of 0.25",
        ),
        ({"entries": 10}, "its kernels have 9; nearest: 9"),
        ({"layers": {"fc": 0.5}}, r"layers \['fc'\]: need some of \['conv1', 'conv2'\]"),
        ({"assignment": "filter"}, "assignment in"),
        ({"connectivity": 0.0}, r"connectivity and layers in \(0, 1\]"),
    ],
)
def test_what_cannot_be_met_is_refused(
    trained: nn.Module, digits: Dataset, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        pruned(trained, digits, **settings)


def test_a_network_without_kernels_is_refused(digits: Dataset) -> None:
    with pytest.raises(ModelError, match="no convolution of more than one tap"):
        pruned(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits)


def test_patterns_make_four_ninths_of_the_products_under_encryption(trained: nn.Module, digits: Dataset) -> None:
    model = pruned(trained, digits)
    expected = counted(model)
    # Where a tap falls inside: conv1 (padding 1, 8x8) 8 or 7 rows and columns; conv2 (stride 2) 4 or, for the first, 3.
    inside = {"conv1": np.outer([7, 8, 7], [7, 8, 7]), "conv2": np.outer([3, 4, 4], [3, 4, 4])}
    for name, places in inside.items():
        kept = kernels(model, name)
        assert expected[name] == int((kept * places).sum())
        assert kept.mean() == pytest.approx(4 / 9)
    x = digits.normalized("test")[:100]
    found = run_encrypted(model, x)
    assert planned(found.plan) == expected
    assert (found.outputs.argmax(1) == forward(model, x.astype(np.float64)).argmax(1)).sum() >= 99
    # A thousand outputs, of images that calibration did not see.
    assert 0 < found.error <= 1.5 * found.plan.error_bound


def test_one_pattern_per_channel_saves_operands_of_the_first_layer(trained: nn.Module, digits: Dataset) -> None:
    """In diagonal packing of the plain image a tap of conv1 is an operand, and all but the centre a rotation of the input."""
    for assignment in ("kernel", "input_channel"):
        model = pruned(trained, digits, assignment=assignment)
        plan = compile(model, degrees=(8192,), max_error=1e6, input_packings=("plain",))
        leaves = leaf_totals(layer_counts(plan)["conv1"])
        union = kernels(model, "conv1").any(axis=(0, 1))
        assert leaves["mul_plain"] == union.sum()
        if assignment == "input_channel":
            assert union.sum() == 4 and leaves["rotate"] <= 3


def test_compact_storage_holds_the_layer(trained: nn.Module, digits: Dataset) -> None:
    model = pruned(trained, digits, connectivity=0.5, layers={"conv1": 1.0})
    patterns = np.array(model.metadata["steps"][0]["library"]["3x3"], dtype=np.bool_)
    weight = np.asarray(model.arrays["conv2.weight"])
    stored = encode_kernels(weight, patterns)
    np.testing.assert_array_equal(decode_kernels(stored, patterns), weight)
    assert stored.byte_size < weight.nbytes * (4 / 9) / 2 + 64


def test_a_pointwise_convolution_loses_kernels_only_where_it_is_named(digits: Dataset) -> None:
    class Pointwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix, self.fc = nn.Conv2d(1, 4, 3, stride=2), nn.Conv2d(4, 4, 1), nn.Linear(36, 10)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(F.relu(self.mix(self.conv(x))).flatten(1))
            return y

    torch.manual_seed(0)
    once = {"rounds": 1, "training": {"epochs": 1}, "retraining": {"epochs": 1}}
    assert kernels(pruned(Pointwise(), digits, **once), "mix").all()
    assert kernels(pruned(Pointwise(), digits, layers={"mix": 0.5}, **once), "mix").sum() == 8
