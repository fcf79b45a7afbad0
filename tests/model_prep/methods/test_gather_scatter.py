"""Gather-scatter pruning: balanced rows and banks, a gathered first layer, and hidden layers of whole shifts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from he_runtime import Plan, compile
from he_runtime.cost import load_default
from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel
from he_runtime.plan.counts import layer_counts, leaf_totals
from model_prep import Recipe, compress
from model_prep.data import Dataset, load
from model_prep.graph import Graph, weight_keys
from model_prep.methods import GatherScatter
from model_prep.packing.packing import packed_classes
from model_prep.structures import Balanced, Layer, Weights, decode_gather, encode_gather, gather_cycles, peel
from tests.model_prep.methods.block_checks import assert_encrypted_equals_clear

Bools = npt.NDArray[np.bool_]
SLOTS = 4096
ROWS, COLUMNS, KEPT = 256, 64, 16
QUICK = {"epochs": 6, "learning_rate": 4e-3}
PRUNING = {"method": "gather-scatter", "density": KEPT / COLUMNS, "training": QUICK}
TENSEAL = load_default("tenseal")


class Wide(nn.Module):
    """64-256-64-10: the first layer has four times as many weights as a ciphertext of degree 8192 has slots."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(COLUMNS, ROWS), nn.Linear(ROWS, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x.flatten(1)))
        y: Tensor = self.last(torch.relu(self.second(x)))
        return y


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def wide(*steps: Mapping[str, object], epochs: int = 8) -> Recipe:
    """`epochs` of training for the network and for its quadratics."""
    training = {"epochs": epochs, "learning_rate": 4e-3}
    steps = ({"method": "quadratics", "training": training}, *steps)
    return Recipe.from_dict({"name": "wide", "teacher": training, "steps": list(steps)})


def compressed(recipe: Recipe, digits: Dataset) -> CompressedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return compress(Wide(), recipe, digits, quiet=True)


@pytest.fixture(scope="module")
def model(digits: Dataset) -> CompressedModel:
    return compressed(wide(PRUNING), digits)


@pytest.fixture(scope="module")
def plan(model: CompressedModel) -> Plan:
    return compile(model, degrees=(2 * SLOTS,), table=TENSEAL, input_packings=("gathered",))


def masks(model: CompressedModel) -> dict[str, Bools]:
    return {n.name: np.asarray(model.arrays[n.arrays["weight"]]) != 0 for n in model.nodes if n.op == "dense"}


def shifts(mask: Bools) -> npt.NDArray[np.int64]:
    """The (column - row) modulo the smaller side, rounded up to a power of two, that a mask holds."""
    modulus = min(1 << (side - 1).bit_length() for side in mask.shape)
    row, column = np.nonzero(mask)
    return np.unique((column - row) % modulus)


def products(plan: Plan, layer: str) -> int:
    return leaf_totals(layer_counts(plan)[layer])["mul_plain"]


def test_rows_and_banks_of_the_first_layer_are_balanced(model: CompressedModel) -> None:
    mask = masks(model)["first"]
    assert (mask.sum(axis=1) == KEPT).all()
    for row in mask:
        assert (np.bincount(np.flatnonzero(row) % 8, minlength=8) == KEPT // 8).all()
        peel(row[None], 8, 8)  # groups of eight distinct banks
    weights = np.asarray(model.arrays["first.weight"])
    stored = encode_gather(weights, 8, 8)
    np.testing.assert_array_equal(decode_gather(stored), weights)
    assert stored.byte_size < 0.5 * weights.nbytes


def test_hidden_layers_keep_whole_shifts(model: CompressedModel) -> None:
    for name, kept in (("second", 16), ("last", 4)):
        mask = masks(model)[name]
        modulus = {"second": 64, "last": 16}[name]
        assert len(shifts(mask)) == kept
        row, column = np.indices(mask.shape)
        np.testing.assert_array_equal(mask, np.isin((column - row) % modulus, shifts(mask)))
        layer = Layer("w", "dense", mask.shape)
        cyclic = Balanced(modulus, 1, cyclic=True).keep(layer, mask.astype(np.float64), kept / modulus)
        np.testing.assert_array_equal(cyclic, mask, err_msg="whole shifts are the cyclic GS(modulus, 1)")


def test_the_report_counts_gathers(model: CompressedModel) -> None:
    assert model.metadata["accuracy"]["final"] > 0.9
    report = model.metadata["steps"][-1]
    mask = masks(model)["first"]
    assert report["first"] == "first.weight" and report["row_length"] == KEPT
    assert report["gathers"] == gather_cycles(mask, 8, 8) == mask.sum() // 8, "no bank conflict"
    assert report["gathers_unstructured"] > 1.2 * report["gathers"]
    assert report["nonzeros"] == sum(int(m.sum()) for m in masks(model).values())


def test_products_follow_from_the_mask(model: CompressedModel) -> None:
    """First layer: ceil(row length * rows / slots), of uploads too; hidden layers: the shifts left, in plain copies."""
    kept = masks(model)
    plan = compile(model, degrees=(2 * SLOTS,), table=TENSEAL, input_packings=("gathered",), pitched=False)
    steps = int(kept["first"].sum(axis=1).max())
    assert products(plan, "first") == len(plan.inputs[0].values) == -(-steps * ROWS // SLOTS) == 1
    assert products(plan, "first") == -(-int(kept["first"].sum()) // SLOTS), "as many as the non-zeros fill"
    for name in ("second", "last"):
        assert products(plan, name) == len(shifts(kept[name]))


def test_as_many_weights_unbalanced_take_more_products(digits: Dataset) -> None:
    dense = compressed(wide(epochs=2), digits)
    weight = np.asarray(dense.arrays["first.weight"], dtype=np.float64)
    unstructured = Weights().keep(Layer("w", "dense", weight.shape), weight**2, KEPT / COLUMNS)
    assert unstructured.sum() == ROWS * KEPT
    found = {}
    for name, mask in {"dense": weight != 0, "unbalanced": unstructured}.items():
        pruned = dense.with_(arrays={**dense.arrays, "first.weight": weight * mask})
        gathered = compile(pruned, degrees=(2 * SLOTS,), table=TENSEAL, input_packings=("gathered",), pitched=False)
        found[name] = products(gathered, "first")
        assert found[name] == -(-int(mask.sum(axis=1).max()) * ROWS // SLOTS)
        second = masks(pruned)["second"]
        assert products(gathered, "second") == len(shifts(second)) == 64
    assert found["dense"] == 4 and found["unbalanced"] > 1


def test_encrypted_equals_clear(plan: Plan, digits: Dataset) -> None:
    assert_encrypted_equals_clear(plan, digits.normalized("test")[:100].astype(np.float64))


def short(network: str, **settings: object) -> Recipe:
    """Too little training for any accuracy, enough to run the step."""
    step = {"method": "gather-scatter", "training": {"epochs": 2}, **settings}
    table = {"name": "short", "network": network, "teacher": {"epochs": 1}, "train_limit": 320, "steps": [step]}
    return Recipe.from_dict(table)


@pytest.mark.parametrize(("bank", "per_row"), [(8, 8), (8, 2)])
def test_without_cyclic_every_layer_is_balanced(bank: int, per_row: int) -> None:
    model = compress(
        None, short("digits-mlp", cyclic=False, bank=bank, per_row=per_row, density=0.25, solver="greedy"), quiet=True
    )
    for mask in masks(model).values():
        assert (mask.sum(axis=1) == 16).all()
        height = bank // per_row
        for start in range(0, len(mask) // height * height, height):
            bundle = mask[start : start + height]
            assert all(bundle[:, lane::bank].sum() == 16 * height // bank for lane in range(bank))


def test_a_layer_may_have_a_density_of_its_own() -> None:
    recipe = short("digits-cnn", density=0.25, degree=2 * SLOTS, layers={"conv1": 1.0, "fc": 0.5})
    model = compress(None, recipe, quiet=True)
    kept = {key: np.asarray(model.arrays[key]) != 0 for key in weight_keys(model)}
    assert (kept["conv1.weight"].reshape(8, 9).sum(axis=1) == 8).all(), "one of nine banks is no group"
    classes = packed_classes(Graph.from_model(model), 2 * SLOTS)
    for key, density in (("conv2.weight", 0.25), ("fc.weight", 0.5)):
        alive = np.unique(classes[key][kept[key]])
        assert len(alive) == round(density * len(np.unique(classes[key])))
        np.testing.assert_array_equal(kept[key], np.isin(classes[key], alive))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.05}, r"need at least 8 of 64 weights in each row; try a density of 0\.125"),
        ({"layers": {"fc9": 0.5}}, r"cannot prune layers \['fc9'\]: need some of \['fc1', 'fc2', 'fc3'\]"),
        ({"bank": 128, "per_row": 1}, "it has 64 columns, need at least as many as banks; try at most 64 banks"),
    ],
)
def test_impossible_targets_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        compress(None, short("digits-mlp", **settings), quiet=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.0}, "densities"),
        ({"layers": {"fc1": 1.5}}, "densities"),
        ({"ramp": 1.5}, "ramp"),
        ({"degree": 1000}, "degree 0 or one of"),
        ({"bank": 8, "per_row": 3}, r"GS\(8, 3\)"),
        ({"solver": "magic"}, "solver"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        GatherScatter(**settings)  # type: ignore[arg-type]


def test_it_comes_before_folding() -> None:
    steps = [{"method": "integers", "training": {"epochs": 0}}, {"method": "gather-scatter"}]
    recipe = Recipe.from_dict({"name": "late", "network": "digits-mlp", "train_limit": 320, "steps": steps})
    with pytest.raises(ModelError, match="before the network is folded"):
        compress(None, recipe, quiet=True)
