"""What may follow a quantization: nothing that would move weights off their levels, or find nothing to quantize."""

from __future__ import annotations

from typing import Any

import pytest

from he_runtime.errors import ModelError
from model_prep import Recipe, compress
from model_prep.data import Dataset, load
from model_prep.methods import METHODS

ONCE: dict[str, Any] = {"epochs": 1, "batch_size": 32}
QUADRATICS = {"method": "quadratics"}
INTEGERS = {"method": "integers"}
LEVELS = {
    "method": "levels",
    "ladder": [1],
    "admm": {"rounds": 1, "hard": False, "training": ONCE},
    "settle": {"shares": [1.0], "training": ONCE},
    "finish": ONCE,
}
NONE: dict[str, Any] = {run: {"epochs": 0} for run in ("training", "retraining", "mapping")}
CROSSBARS = {"method": "crossbars", "rounds": 0, **NONE}
QUANTIZED = {
    "integers": [INTEGERS],
    "crossbars": [CROSSBARS],
    "levels": [LEVELS],
}
SETTLED = {  # without a quantizer: every row or device has a scale of its own
    "levels": [{**LEVELS, "shared": False}],
    "crossbars": [{**CROSSBARS, "mode": "single"}],
}


@pytest.fixture(scope="module")
def few() -> Dataset:
    return load("digits").subset(64, 16)


def compressed(data: Dataset, *steps: dict[str, Any]) -> list[str]:
    recipe = Recipe.from_dict({"name": "t", "network": "digits-mlp", "steps": [QUADRATICS, *steps]})
    return [step["method"] for step in compress(None, recipe, data, quiet=True).metadata["steps"]]


@pytest.mark.parametrize("after", ["integers", "crossbars"])
@pytest.mark.parametrize("before", QUANTIZED)
def test_a_network_is_quantized_once(before: str, after: str, few: Dataset) -> None:
    message = (
        rf"cannot apply '{after}' after \['quadratics', '{before}'\]: all layers are quantized already.*in place of"
    )
    with pytest.raises(ModelError, match=message):
        compressed(few, *QUANTIZED[before], {"method": after})


@pytest.mark.parametrize("after", sorted(METHODS))
@pytest.mark.parametrize("before", QUANTIZED)
def test_every_method_is_refused_after_a_quantization(before: str, after: str, few: Dataset) -> None:
    with pytest.raises(ModelError, match=rf"cannot apply '{after}' after .*'{before}'\].*try"):
        compressed(few, *QUANTIZED[before], {"method": after})


@pytest.mark.parametrize("after", sorted(METHODS))
@pytest.mark.parametrize("before", SETTLED)
def test_levels_that_no_quantizer_keeps_are_not_left(before: str, after: str, few: Dataset) -> None:
    with pytest.raises(ModelError, match=rf"'{after}' after .*off the levels of '{before}', need it before them"):
        compressed(few, *SETTLED[before], {"method": after})


@pytest.mark.parametrize("last", [*QUANTIZED.values(), *SETTLED.values()])
def test_a_quantization_follows_a_pruning(last: list[dict[str, Any]], few: Dataset) -> None:
    pruning = {"method": "magnitude", "density": 0.5}
    assert compressed(few, pruning, *last) == ["quadratics", "magnitude", last[0]["method"]]
