"""`secateur recommend`: what is asked becomes a recipe that `compress` reads, or a refusal that names what there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from model_prep import Recipe


def test_a_recipe_is_recommended_written_and_readable(cli: Any, tmp_path: Path) -> None:
    said = cli(
        "recommend", "digits-mlp", "--max-ms", "20", "--backend", "tenseal", "--out", tmp_path / "mine.toml", "--json"
    )
    assert said.code == 0
    record = json.loads(said.out)
    recipe = Recipe.load(tmp_path / "mine.toml")
    assert recipe == Recipe.from_dict(record["recipe"]) and record["written"] == str(tmp_path / "mine.toml")
    assert [step.card.name for step in recipe.steps] == ["quadratics", "diagrid", "integers"]
    assert len(record["reasons"]) == 3 and record["before"]["ms"] > 20 and record["measured_accuracy"] is None


def test_what_was_measured_is_preferred(cli: Any) -> None:
    evidence = Path(__file__).parents[2] / "docs" / "results" / "methods-digits-cnn.json"
    asked = ("recommend", "digits-cnn", "--max-ms", "20", "--backend", "tenseal", "--evidence", evidence)
    record = json.loads(cli(*asked, "--json").out)
    assert record["measured_accuracy"] > 0.98 and "measured" in record["reasons"][0]
    text = cli(*asked).out
    assert "measured" in text and max(map(len, text.splitlines())) <= 80


def test_refusals_name_what_there_is(refused: Any, tmp_path: Path) -> None:
    assert "try max_ms = " in refused("recommend", "digits-mlp", "--max-ms", "0.01")
    assert "need one of digits-mlp" in refused("recommend", "nope")
    assert "need 0 or more" in refused("recommend", "digits-mlp", "--max-levels", "-1")
    assert "try another place" in refused("recommend", "digits-mlp", "--out", tmp_path / "no" / "such" / "folder.toml")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"points": 3}', '{"points": [{"made": true}]}', '{"points": [1]}', "\udcff"], ids=repr
)
def test_evidence_that_is_none(text: str, refused: Any, tmp_path: Path) -> None:
    (tmp_path / "evidence.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    said = refused("recommend", "digits-mlp", "--evidence", tmp_path / "evidence.json")
    assert "evidence" in said and "need" in said and "--json" in said
