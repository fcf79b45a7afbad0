"""Recipes: the shipped ones load, and everything that is wrong with one is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from he_runtime.errors import ModelError
from model_prep import Recipe
from model_prep.networks import NETWORKS

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
        ("name = 'x'\n[calibration]\nmargin = 0.5", "margin >= 1"),
        ("name = ", "valid TOML"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ModelError, match=message):
        Recipe.load(path)


def test_a_missing_file_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="need a TOML file"):
        Recipe.load(tmp_path / "absent.toml")


def test_an_integer_serves_as_a_float() -> None:
    recipe = Recipe.from_dict({"name": "x", "teacher": {"learning_rate": 1}})
    assert recipe.teacher.learning_rate == 1.0
