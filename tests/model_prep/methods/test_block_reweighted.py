"""BLK-REW: each block loses whole rows and columns of its own, and column packing pays for what is left."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from he_runtime import Plan
from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel
from he_runtime.plan.counts import layer_counts, leaf_totals
from model_prep import Recipe, compress
from model_prep.data import load
from model_prep.graph import weight_keys
from model_prep.methods import BlockRowsColumns
from model_prep.structures import Layer
from tests.model_prep.methods.block_checks import (
    assert_encrypted_equals_clear,
    assert_products,
    one_feature,
    products,
)

Bools = npt.NDArray[np.bool_]
QUICK = {"epochs": 4, "learning_rate": 4e-3}
PRUNING = {"method": "block-reweighted", "density": 0.2, "rounds": 3, "training": QUICK, "retraining": QUICK}
BLOCKS = {"conv1.weight": (8, 36), "conv2.weight": (8, 36), "fc.weight": (16, 16)}


def short(network: str, **settings: object) -> Recipe:
    """Too little training for any accuracy, enough to run the step."""
    once = {"epochs": 1}
    step = {"method": "block-reweighted", "rounds": 2, "training": once, "retraining": once, **settings}
    table = {"name": "short", "network": network, "teacher": once, "train_limit": 320, "steps": [step]}
    return Recipe.from_dict(table)


@pytest.fixture(scope="module")
def model() -> CompressedModel:
    steps = [{"method": "quadratics", "training": QUICK}, PRUNING]
    teacher = {"epochs": 8, "learning_rate": 5e-3}
    recipe = Recipe.from_dict({"name": "blocks", "network": "digits-cnn", "teacher": teacher, "steps": steps})
    return compress(None, recipe, quiet=True)


@pytest.fixture(scope="module")
def plan(model: CompressedModel) -> Plan:
    return one_feature(model)


def masks(model: CompressedModel) -> dict[str, Bools]:
    return {key: np.asarray(model.arrays[key]) != 0 for key in weight_keys(model)}


def blocks_of(mask: Bools, rows: int, columns: int) -> list[Bools]:
    matrix = mask.reshape(len(mask), -1)
    return [
        matrix[top : top + rows, left : left + columns]
        for top in range(0, matrix.shape[0], rows)
        for left in range(0, matrix.shape[1], columns)
    ]


def assert_rows_and_columns(block: Bools) -> None:
    """What is left is every crossing of a row that stays and a column that stays."""
    np.testing.assert_array_equal(block, np.outer(block.any(axis=1), block.any(axis=0)))


def test_each_block_loses_rows_and_columns_of_its_own(model: CompressedModel) -> None:
    assert model.metadata["accuracy"]["final"] > 0.85
    for key, mask in masks(model).items():
        rows, columns = BLOCKS[key]
        blocks = blocks_of(mask, rows, columns)
        for block in blocks:
            assert_rows_and_columns(block)
        assert 0.2 * mask.size - max(rows, columns) < mask.sum() <= round(0.2 * mask.size)
    kept = {block.any(axis=1).tobytes() + block.any(axis=0).tobytes() for block in blocks_of(mask, 16, 16)}
    assert len(kept) > 1, "independently of the other blocks"


def test_the_report_counts_blocks_and_living_pieces(model: CompressedModel) -> None:
    report = model.metadata["steps"][-1]
    kept = masks(model)
    assert report["structure"] == "block-rows-and-columns"
    assert report["nonzeros"] == sum(int(m.sum()) for m in kept.values())
    assert report["tiles"] == sum(bool(b.any()) for key, m in kept.items() for b in blocks_of(m, *BLOCKS[key]))
    assert report["tiles_dense"] == 1 + 2 * 2 + 16
    living = [sum(counts.values()) for counts in report["living"]]
    assert len(living) == 3 and living == sorted(living, reverse=True), "the penalty brings pieces down"


def unrolled(mask: Bools, size: int, stride: int) -> Bools:
    """A 3 x 3 convolution, padded by one, of a `size` x `size` image: (filters * positions, channels * pixels)."""
    filters, channels = mask.shape[:2]
    out = size // stride
    matrix = np.zeros((filters, out, out, channels, size, size), dtype=np.bool_)
    for y in range(out):
        for x in range(out):
            for dy in range(3):
                for dx in range(3):
                    row, column = y * stride - 1 + dy, x * stride - 1 + dx
                    if 0 <= row < size and 0 <= column < size:
                        matrix[:, y, x, :, row, column] = mask[:, :, dy, dx]
    return matrix.reshape(filters * out * out, -1)


def test_products_in_column_packing_are_the_non_zeros(model: CompressedModel, plan: Plan) -> None:
    """One for each weight left and output position that it reaches inside the image."""
    kept = masks(model)
    matrices = [unrolled(kept["conv1.weight"], 8, 1), unrolled(kept["conv2.weight"], 8, 2), kept["fc.weight"]]
    counts = products(matrices)
    for (key, name), expected in zip(weight_keys(model).items(), counts, strict=True):
        assert_products(plan, name, expected, np.asarray(model.arrays[key]))
    full = [unrolled(np.ones_like(kept[key]), 8, stride) for key, stride in (("conv1.weight", 1), ("conv2.weight", 2))]
    dense = products([*full, np.ones_like(kept["fc.weight"])])
    assert sum(counts) < 0.25 * sum(dense)
    squares = leaf_totals(layer_counts(plan)["relu"])["square"]
    assert squares == 64 * kept["conv1.weight"].any(axis=(1, 2, 3)).sum(), "a filter without weights costs none"


def test_encrypted_equals_clear(plan: Plan) -> None:
    assert_encrypted_equals_clear(plan, load("digits").normalized("test")[:100].astype(np.float64))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 5), (16, 16), (10**6, 10**6)])
def test_dense_layers_in_blocks_of_any_size(rows: int, columns: int) -> None:
    """From single weights to the whole matrix; 7 x 5 divides no layer."""
    model = compress(None, short("digits-mlp", rows=rows, columns=columns, layers={"fc3": 0.6}), quiet=True)
    for key, mask in masks(model).items():
        for block in blocks_of(mask, rows, columns):
            assert_rows_and_columns(block)
        density = 0.6 if key == "fc3.weight" else 0.2
        side = max(min(rows, mask.shape[0]), min(columns, mask.shape[1]))
        assert round(density * mask.size) - side < mask.sum() <= round(density * mask.size)


def test_a_convolution_is_cut_at_input_channels() -> None:
    layer = Layer("w", "conv2d", (6, 5, 3, 2))
    structure = BlockRowsColumns(filters=4, channels=2).structure(layer)
    assert (structure.rows, structure.columns) == (4, 2 * 3 * 2)
    whole = BlockRowsColumns(filters=10**9, channels=10**9).structure(layer)
    assert (whole.rows, whole.columns) == layer.matrix_shape, "no block is larger than its layer"
    assert BlockRowsColumns(rows=5, columns=3).structure(Layer("w", "dense", (6, 5))).columns == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 1e-4}, r"'fc1\.weight' to density 0\.0001: it has 4096 weights.*try a density of 0\.0002441"),
        ({"layers": {"conv9": 0.5}}, r"cannot prune layers \['conv9'\]: need some of"),
    ],
)
def test_impossible_targets_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        compress(None, short("digits-mlp", **settings), quiet=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.0}, "densities"),
        ({"layers": {"fc1": 2.0}}, "densities"),
        ({"channels": 0}, "at least 1"),
        ({"rounds": -1}, "rounds >= 0"),
        ({"strength": -1.0}, "strengths >= 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        BlockRowsColumns(**settings)  # type: ignore[arg-type]
