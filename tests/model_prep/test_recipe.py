"""Recipes: the shipped ones load, and everything that is wrong with one is said."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from he_runtime.errors import ModelError
from model_prep import Recipe
from model_prep.methods import DiaGrid
from model_prep.networks import NETWORKS
from model_prep.settings import Training

SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipes_load_and_name_what_exists(path: Path) -> None:
    recipe = Recipe.load(path)
    assert recipe.name == path.stem
    assert NETWORKS[recipe.network].dataset == recipe.dataset
    assert recipe.teacher.epochs > 0


def test_every_network_has_a_recipe() -> None:
    assert set(NETWORKS) <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_recipe_is_written_as_a_file_and_read_back(path: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(path)
    (tmp_path / "again.toml").write_text(recipe.to_toml())
    assert Recipe.load(tmp_path / "again.toml") == recipe
    assert "weight_decay" not in recipe.to_toml(), "what is as by default is left out"


def test_a_recipe_goes_into_metadata_and_back() -> None:
    recipe = Recipe.load(SHIPPED[0])
    table = {k: v for k, v in recipe.to_dict().items() if v is not None}
    assert Recipe.from_dict(table) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network = 'digits-cnn'", "need a name"),
        ("name = 'x'\nepoch = 3", r"unknown keys \['epoch'\]"),
        ("name = 'x'\n[teacher]\nlr = 0.1", r"recipe\.teacher: unknown keys \['lr'\]"),
        ("name = 'x'\n[teacher]\nepochs = 'many'", r"recipe\.teacher\.epochs: got str, need int"),
        ("name = 'x'\n[teacher]\nepochs = true", "got bool, need int"),
        ("name = 'x'\n[teacher]\nepochs = -1", "epochs >= 0"),
        ("name = 'x'\nteacher = 3", r"recipe\.teacher: got int, need a table"),
        ("name = 'x'\n[pruning]\ndensity = 0.5", r"unknown keys \['pruning'\]"),
        ("name = 'x'\nsteps = 3", "need a list of tables"),
        ("name = 'x'\nsteps = [3]", r"steps\[0\]: got int, need a table with a method"),
        ("name = 'x'\n[[steps]]\ndensity = 0.5", "need a table with a method"),
        ("name = 'x'\n[[steps]]\nmethod = 'magic'", "unknown method 'magic', need one of .*'magnitude'"),
        (
            "name = 'x'\n[[steps]]\nmethod = 'magnitude'\ndensty = 0.5",
            r"unknown keys \['densty'\], need some of .*density",
        ),
        ("name = 'x'\n[[steps]]\nmethod = 'diagonals'\ndensity = 0.0", "densities"),
        ("name = 'x'\n[[steps]]\nmethod = 'magnitude'\n[steps.layers]\nconv = 0.5", r"unknown keys \['layers'\]"),
        ("name = 'x'\n[[steps]]\nmethod = 'diagonals'\n[steps.layers]\nconv = 'half'", "need float"),
        ("name = 'x'\n[[steps]]\nmethod = 'integers'\nbits = 1", "bits in 2..16"),
        ("name = 'x'\n[[steps]]\nmethod = 'quadratics'\nrange_exponent = 5", "even range_exponent"),
        ("name = 'x'\n[calibration]\nmargin = 0.5", r"got margin = 0\.5, need margin in \[1, 100\]"),
        ("name = ", "valid TOML"),
        (f"name = {'[' * 3000}", "nests too deeply; need valid TOML"),
        (f"name = 'x'\nseed = {'9' * 5000}", "valid TOML"),
        ("name = 'x'\n[calibration]\nmargin = inf", r"recipe\.calibration\.margin: got inf, need a finite number"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ModelError, match=message):
        Recipe.load(path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"threads": 0}, "cannot use the recipe: got threads = 0, need threads in 1..1024"),
        ({"threads": -1}, "threads = -1"),
        ({"threads": 10**12}, "threads = 1000000000000"),
        ({"threads": 10**5000}, "threads = an integer of thousands of digits"),
        ({"seed": -1}, r"cannot use the recipe: got seed = -1, need seed in 0..2\^32 - 1"),
        ({"seed": 2**70}, f"seed = {2**70}"),
        ({"train_limit": -5}, "got train_limit = -5, need train_limit >= 0"),
        ({"calibration": {"margin": 1e300}}, r"recipe\.calibration: got margin = 1e\+300, need margin in \[1, 100\]"),
        ({"calibration": {"samples": 0}}, r"recipe\.calibration: got samples = 0, need samples > 0"),
        (
            {"teacher": {"weight_decay": -5.0}},
            r"recipe\.teacher: got weight_decay = -5.0, need weight_decay in \[0, 1e\+30\]",
        ),
        (
            {"teacher": {"weight_decay": 1e60}},
            r"recipe\.teacher: got weight_decay = 1e\+60, need weight_decay in \[0, 1e",
        ),
        (
            {"teacher": {"learning_rate": 1e38}},
            r"recipe\.teacher: got learning_rate = 1e\+38, need learning_rate in \(0, 1e",
        ),
        ({"teacher": {"epochs": -1}}, r"recipe\.teacher: got epochs = -1, batch_size = 64, need epochs >= 0"),
        ({"teacher": {"shift": -1}}, "got shift = -1"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_needed(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Recipe.from_dict({"name": "x", **table})


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, math.nan, 10**400, 10**5000], ids=["inf", "-inf", "nan", "400", "5000"]
)
@pytest.mark.parametrize("name", [f.name for f in fields(Training) if f.type == "float"])
def test_no_float_is_infinite_or_none_at_all(name: str, value: float) -> None:
    with pytest.raises(ModelError, match=rf"recipe\.teacher\.{name}: got .*, need a finite number"):
        Recipe.from_dict({"name": "x", "teacher": {name: value}})
    step = {"method": "unified", "level_training": {name: value}}
    with pytest.raises(ModelError, match=rf"recipe\.steps\[0\] \(unified\)\.level_training\.{name}: got"):
        Recipe.from_dict({"name": "x", "steps": [step]})


def test_infinite_settings_are_refused_without_a_table_too() -> None:
    for name in ("weight_decay", "learning_rate", "temperature"):
        for value in (math.nan, math.inf):
            with pytest.raises(ModelError, match=f"got {name} = {value}, need {name}"):
                Training(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="cannot use the recipe: got seed = -1"):
        Recipe("x", seed=-1)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            {"method": "diagrid", "target_share": 3.0},
            r"\(diagrid\): got target_share = 3.0, need target_share in \(0, 1",
        ),
        ({"method": "diagrid", "target_ms": math.inf}, r"\(diagrid\)\.target_ms: got inf, need a finite number"),
        ({"method": "trace", "precision": "x"}, r"\(trace\): cannot estimate a trace: got precision 'x'"),
        ({"method": "progressive", "admm": {"rho": -1.0}}, r"\(progressive\)\.admm: got rho=-1, need rho > 0"),
        (
            {"method": "progressive", "admm": {"hard": False}},
            r"\(progressive\): got admm\.hard = False, need admm\.hard",
        ),
        ({"method": "unified", "structure": "ring"}, r"\(unified\): got structure = 'ring', need structure in"),
        (
            {"method": "diagonals", "layers": {"a": 2.0}},
            r"\(diagonals\): got density = 1.0, layers = \{'a': 2.0\}, need densities in",
        ),
        (
            {"method": "quadratics", "range_exponent": 10**30},
            r"\(quadratics\): .* need an even range_exponent in 2..64",
        ),
        (
            {"method": "polynomials", "range_exponent": 10**30},
            r"\(polynomials\): .* need an even range_exponent in 2..64",
        ),
        ({"method": "levels", "settle": {"shares": [0.5]}}, r"\(levels\)\.settle: got shares=\(0.5,\), need rising"),
    ],
)
def test_what_is_wrong_with_a_step_is_said_with_its_place(step: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=rf"cannot use the recipe\.steps\[1\] {message}"):
        Recipe.from_dict({"name": "x", "steps": [{"method": "quadratics"}, step]})


def test_settings_made_by_hand_name_their_method() -> None:
    with pytest.raises(
        ModelError, match=r"the recipe's \[diagrid\]: got target_share = 3.0, need target_share in \(0, 1\]"
    ):
        DiaGrid(target_share=3.0)


@pytest.mark.parametrize("table", [[], "recipe", None])
def test_what_is_no_table_is_no_recipe(table: Any) -> None:
    with pytest.raises(ModelError, match=r"cannot use the recipe: got .*, need a table"):
        Recipe.from_dict(table)


def test_a_missing_file_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="need a TOML file"):
        Recipe.load(tmp_path / "absent.toml")


def test_an_integer_serves_as_a_float() -> None:
    recipe = Recipe.from_dict({"name": "x", "teacher": {"learning_rate": 1}})
    assert recipe.teacher.learning_rate == 1.0
