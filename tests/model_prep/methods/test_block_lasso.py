"""Reweighted block pruning: whole pieces, counts to the number, rows that stay, and products in column packing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime import Plan
from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel
from model_prep import Recipe, compress
from model_prep.data import load
from model_prep.graph import weight_keys
from model_prep.methods import ReweightedBlocks
from model_prep.methods.block_lasso import GROUPINGS, keep_pieces
from model_prep.structures import Layer
from tests.model_prep.methods.block_checks import (
    assert_encrypted_equals_clear,
    assert_products,
    one_feature,
    products,
)

Bools = npt.NDArray[np.bool_]
QUICK = {"epochs": 4, "learning_rate": 4e-3}
PRUNING = {"method": "block-lasso", "density": 0.25, "rounds": 3, "training": QUICK, "retraining": QUICK}


def recipe(network: str, *steps: dict[str, object]) -> Recipe:
    quadratics = {"method": "quadratics", "training": QUICK}
    teacher = {"epochs": 10, "learning_rate": 4e-3}
    return Recipe.from_dict({"name": "blocks", "network": network, "teacher": teacher, "steps": [quadratics, *steps]})


def short(network: str, **settings: object) -> Recipe:
    """Too little training for any accuracy, enough to run the step."""
    once = {"epochs": 1}
    step = {"method": "block-lasso", "rounds": 2, "training": once, "retraining": once, **settings}
    table = {"name": "short", "network": network, "teacher": once, "train_limit": 320, "steps": [step]}
    return Recipe.from_dict(table)


@pytest.fixture(scope="module")
def model() -> CompressedModel:
    return compress(None, recipe("digits-mlp", PRUNING), quiet=True)


@pytest.fixture(scope="module")
def plan(model: CompressedModel) -> Plan:
    return one_feature(model)


def masks(model: CompressedModel) -> dict[str, Bools]:
    """Weight array -> its mask as a matrix."""
    return {key: (np.asarray(model.arrays[key]) != 0).reshape(len(model.arrays[key]), -1) for key in weight_keys(model)}


def pieces(mask: Bools, height: int, width: int) -> npt.NDArray[np.int64]:
    """How many weights stay in each piece of `height` x `width`, edge pieces being smaller; and that none is cut."""
    kept = []
    for top in range(0, mask.shape[0], height):
        for left in range(0, mask.shape[1], width):
            piece = mask[top : top + height, left : left + width]
            assert piece.all() or not piece.any()
            kept.append(int(piece.sum()))
    return np.array(kept)


def tiles(mask: Bools, side: int = 8) -> int:
    return sum(
        bool(mask[top : top + side, left : left + side].any())
        for top in range(0, mask.shape[0], side)
        for left in range(0, mask.shape[1], side)
    )


def test_pieces_of_rows_stay_or_go_in_the_number_asked_for(model: CompressedModel) -> None:
    for mask in masks(model).values():
        kept = pieces(mask, 1, 8)
        assert np.count_nonzero(kept) == round(0.25 * len(kept))
        assert mask.any(axis=1).all(), "no neuron is lost"
    assert model.metadata["accuracy"]["final"] > 0.9


def test_the_report_counts_tiles_and_living_groups(model: CompressedModel) -> None:
    report = model.metadata["steps"][-1]
    kept = masks(model)
    assert report["structure"] == "block-rows" and report["nonzeros"] == sum(int(m.sum()) for m in kept.values())
    assert report["tiles"] == sum(tiles(m) for m in kept.values())
    assert report["tiles_dense"] == 64 + 64 + 2 * 8
    living = [sum(counts.values()) for counts in report["living"]]
    assert len(living) == 3 and living == sorted(living, reverse=True), "the penalty brings groups down"


@pytest.mark.parametrize(("grouping", "height", "width"), [("rows", 1, 5), ("columns", 7, 1), ("whole", 7, 5)])
@pytest.mark.parametrize("network", ["digits-mlp", "digits-cnn"])
def test_every_grouping_keeps_whole_pieces(network: str, grouping: str, height: int, width: int) -> None:
    """Blocks of 7 x 5 divide no layer here."""
    pruning = short(network, grouping=grouping, rows=7, columns=5, density=0.5)
    for mask in masks(compress(None, pruning, quiet=True)).values():
        kept = pieces(mask, height, width)
        assert np.count_nonzero(kept) == max(1, round(0.5 * len(kept)))
        assert all(mask[top : top + height].any() for top in range(0, len(mask), height))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    block=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    grouping=st.sampled_from(sorted(GROUPINGS)),
    density=st.floats(0.0, 1.0),
    protect=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_the_cut_keeps_the_strongest(
    shape: tuple[int, int], block: tuple[int, int], grouping: str, density: float, protect: bool, seed: int
) -> None:
    layer, structure = Layer("w", "dense", shape), GROUPINGS[grouping](*block)
    energy = np.random.default_rng(seed).random(shape) + 0.01
    mask = keep_pieces(structure, layer, energy, density, protect)
    height, width = {"rows": (1, block[1]), "columns": (block[0], 1), "whole": block}[grouping]
    kept = pieces(mask, height, width) > 0
    assert kept.sum() == max(1, round(density * kept.size))
    bands = kept.reshape(-(-shape[0] // height), -1)
    sums = np.add.reduceat(np.add.reduceat(energy, range(0, shape[0], height)), range(0, shape[1], width), axis=1)
    if not protect:
        assert sums[bands].min() >= sums[~bands].max(initial=0.0)
    elif kept.sum() >= len(bands):
        assert bands.any(axis=1).all()
        best = np.zeros(bands.shape, dtype=np.bool_)
        best[np.arange(len(bands)), sums.argmax(axis=1)] = True
        assert bands[best].all()
        assert sums[bands & ~best].min(initial=np.inf) >= sums[~bands].max(initial=0.0)


def test_products_in_column_packing_are_the_non_zeros(model: CompressedModel, plan: Plan) -> None:
    kept = masks(model)
    counts = products(list(kept.values()))
    assert counts == [int(m.sum()) for m in kept.values()], "no neuron is constant"
    for (key, name), expected in zip(weight_keys(model).items(), counts, strict=True):
        assert_products(plan, name, expected, np.asarray(model.arrays[key]))
        assert 0.2 * kept[key].size < expected < 0.3 * kept[key].size


def test_encrypted_equals_clear(plan: Plan) -> None:
    images = load("digits").normalized("test")[:100].astype(np.float64)
    assert_encrypted_equals_clear(plan, images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.1}, r"it has 512 groups, need at least 64, one for each row .*; try a density of 0\.125"),
        (
            {"density": 0.001, "protect": False},
            r"it has 80 groups, need at least 1, one for the layer; try a density of 0\.0125",
        ),
        ({"density": 0.1, "rows": 1000, "columns": 1000}, r"it has 64 groups, need at least 64.*density of 1"),
        ({"layers": {"fc9": 0.5}}, r"cannot prune layers \['fc9'\]: need some of"),
    ],
)
def test_impossible_targets_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        compress(None, short("digits-mlp", **settings), quiet=True)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_a_block_beyond_the_matrix_is_the_whole(grouping: str) -> None:
    settings = {"grouping": grouping, "density": 1.0, "rounds": 0, "retraining": {"epochs": 0}}
    model = compress(None, short("digits-mlp", **settings, rows=10**30, columns=10**30), quiet=True)
    assert model.metadata["steps"][-1]["tiles"] == model.metadata["steps"][-1]["tiles_dense"] == 3


def test_rows_may_be_left_unprotected() -> None:
    model = compress(None, short("digits-mlp", density=0.05, protect=False), quiet=True)
    for mask in masks(model).values():
        kept = pieces(mask, 1, 8)
        assert np.count_nonzero(kept) <= round(0.05 * len(kept)), "pieces of neurons that became constant may be gone"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.0}, "densities"),
        ({"grouping": "diagonal"}, "grouping in"),
        ({"rows": 0}, "at least 1 x 1"),
        ({"rounds": -1}, "rounds >= 0"),
        ({"strength": -1.0}, "strengths >= 0"),
        ({"epsilon": 0.0}, "epsilon > 0"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ReweightedBlocks(**settings)  # type: ignore[arg-type]
