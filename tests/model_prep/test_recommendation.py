"""Recommended recipes: from constraints to steps, with reasons, and refusals that name what is feasible."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from he_runtime import compile, price
from he_runtime.cost import load_default
from he_runtime.errors import DoesNotFit, ModelError
from model_prep import Recipe, compress
from model_prep.data import load
from model_prep.methods import METHODS
from model_prep.methods.method import FAMILIES
from model_prep.recommendation import Constraints, Recommendation, _floor, recommend, unmet
from model_prep.reference_models import random_reference

NETWORK, BACKEND = "digits-mlp", "tenseal"
RECIPES = Path(__file__).parents[2] / "recipes"
COMPOSED = (
    "digits-cnn-default",
    "digits-cnn-smallest-latency",
    "digits-cnn-smallest-upload",
    "digits-cnn-no-accuracy-loss",
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def names(found: Recommendation) -> list[str]:
    return [step.card.name for step in found.recipe.steps]


def asked(**constraints: Any) -> Recommendation:
    return recommend(Constraints(**constraints), NETWORK, backend=BACKEND)


def feasible(error: BaseException, what: str) -> float:
    """The value that a refusal says to try."""
    found = re.search(rf"try .*{what} = ([0-9.e+]+)", str(error))
    assert found is not None, str(error)
    return float(found[1])


def test_nothing_asked_prunes_nothing() -> None:
    found = asked()
    assert names(found) == ["quadratics", "integers"]
    table = load_default(BACKEND)
    report = price(compile(random_reference(NETWORK), table=table), table)
    assert (found.before.ms, found.before.levels) == (report.latency_ms, report.levels)
    assert found.before.upload_bytes == report.upload_bytes
    assert len(found.reasons) == 2 and found.reasons[0].startswith("quadratics: 2 levels")


def test_latency_asks_for_pruning_to_it() -> None:
    found = asked(max_ms=30.0, accuracy=0.97)
    assert names(found) == ["quadratics", "diagrid", "integers"]
    (pruning,) = (step for step in found.recipe.to_dict()["steps"] if step["method"] == "diagrid")
    assert 0.8 * 30 < pruning["target_ms"] <= 30 and pruning["backend"] == BACKEND
    assert any("where 30 ms are allowed" in reason for reason in found.reasons)
    assert any(reason.startswith("accuracy: at least 97.00%") for reason in found.reasons)


def test_a_latency_below_the_floor_is_refused_with_the_floor() -> None:
    with pytest.raises(DoesNotFit, match="got max_ms = 1, and with one diagonal left") as refused:
        asked(max_ms=1.0)
    floor = feasible(refused.value, "max_ms")
    assert 1 < floor < 63
    assert "diagrid" in names(asked(max_ms=1.01 * floor))


def test_the_floor_is_that_of_fewer_activations() -> None:
    """DiaGrid takes them out where a latency asks for it, so what is refused lies below that."""
    with pytest.raises(DoesNotFit) as refused:
        asked(max_ms=1.0)
    floor = feasible(refused.value, "max_ms")
    table = load_default(BACKEND)
    kept = _floor(random_reference(NETWORK), table)
    assert floor < kept
    for asked_ms in (floor, (floor + kept) / 2):
        model = compress(None, short(asked(max_ms=asked_ms).recipe), load("digits").subset(320, 100), quiet=True)
        assert unmet(Constraints(max_ms=asked_ms), model, backend=BACKEND) == []


def test_arguments_of_other_types_are_refused() -> None:
    for wrong in ({"max_ms": "3"}, {"max_levels": 1.5}, {"max_upload_bytes": "many"}, {"accuracy": True}):
        with pytest.raises(ModelError, match=f"constraint {next(iter(wrong))}: got .*, need "):
            Constraints(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="need a network's name"):
        recommend(Constraints(), 3)  # type: ignore[arg-type]
    for evidence in ([{}], [3], [{"network": NETWORK, "made": True}]):
        with pytest.raises(ModelError, match="cannot use the evidence"):
            recommend(Constraints(), NETWORK, backend=BACKEND, evidence=evidence)  # type: ignore[arg-type]


@pytest.mark.parametrize("constraint", [{"max_levels": 1}, {"max_upload_bytes": 140_000}], ids=str)
def test_levels_and_upload_ask_for_fewer_activations(constraint: dict[str, int]) -> None:
    found = asked(**constraint)
    assert names(found) == ["polynomials", "integers"]
    assert found.recipe.to_dict()["steps"][0]["levels"] == 1


def test_an_upload_below_the_floor_is_refused_with_the_floor() -> None:
    with pytest.raises(DoesNotFit, match="with every activation removed it needs max_upload_bytes") as refused:
        asked(max_upload_bytes=100)
    floor = feasible(refused.value, "max_upload_bytes")
    assert asked(max_upload_bytes=int(floor)).recipe.to_dict()["steps"][0]["levels"] == 0


@pytest.mark.parametrize(
    "wrong", [{"max_ms": 0.0}, {"max_ms": float("nan")}, {"max_levels": -1}, {"max_upload_bytes": 0}, {"accuracy": 1.5}],
    ids=str,
)  # fmt: skip
def test_impossible_constraints_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=f"constraint {next(iter(wrong))}"):
        Constraints(**wrong)


def point(accuracy: float, ms: float, **changes: Any) -> dict[str, Any]:
    """A point of the benchmark, by a recipe whose seed tells it apart."""
    recipe = Recipe.from_dict({"name": "measured", "network": NETWORK, "seed": round(1000 * accuracy), "steps": [
        {"method": "polynomials", "degree": 2}, {"method": "diagonals", "density": 0.5}]})  # fmt: skip
    costs = {"fits": True, "predicted_ms": ms, "levels": 2, "upload_bytes": 196_792}
    known = {"network": NETWORK, "made": True, "accuracy": accuracy, "recipe": recipe.to_dict()}
    return known | {"packings": {"diagonal": costs}} | changes


def test_what_was_measured_comes_first() -> None:
    evidence = [point(0.99, 60.0), point(0.98, 40.0), point(0.97, 30.0), point(0.995, 20.0, network="digits-cnn")]
    found = recommend(Constraints(max_ms=45.0, accuracy=0.975), NETWORK, backend=BACKEND, evidence=evidence)
    assert found.measured == 0.98 and found.recipe.seed == 980
    assert "98.00%" in found.reasons[0]
    with pytest.raises(DoesNotFit, match=r"got accuracy = 0.985, and the best of 2 .* has 0.98; try that"):
        recommend(Constraints(max_ms=45.0, accuracy=0.985), NETWORK, backend=BACKEND, evidence=evidence)
    unmeasured = recommend(Constraints(max_ms=28.0), NETWORK, backend=BACKEND, evidence=evidence)
    assert unmeasured.measured is None and "diagrid" in names(unmeasured)


def test_a_model_is_checked_against_the_constraints() -> None:
    model = random_reference(NETWORK)
    model = model.with_(metadata={**model.metadata, "accuracy": {"final": 0.9}})
    assert unmet(Constraints(max_ms=100, accuracy=0.9), model, backend=BACKEND) == []
    missed = unmet(Constraints(max_ms=1, max_levels=1, accuracy=0.91), model, backend=BACKEND)
    assert [text.split(":")[0] for text in missed] == ["max_ms", "max_levels", "accuracy"]
    with pytest.raises(ModelError, match="states none"):
        unmet(Constraints(accuracy=0.9), random_reference(NETWORK), backend=BACKEND)


def short(recipe: Recipe) -> Recipe:
    """The same steps with next to no training."""
    table = recipe.to_dict()
    for part in (table["teacher"], *(v for step in table["steps"] for v in step.values() if _is_training(v))):
        part["epochs"] = 2
    plain = [{k: v for k, v in step.items() if v is not None} for step in table["steps"]]
    return Recipe.from_dict({**table, "steps": plain})


def _is_training(value: Any) -> bool:
    return isinstance(value, dict) and "epochs" in value


@pytest.mark.parametrize("name", COMPOSED)
def test_composed_recipes_run(name: str) -> None:
    model = compress(None, short(Recipe.load(RECIPES / f"{name}.toml")), load("digits").subset(320, 100), quiet=True)
    families = [step["family"] for step in model.metadata["steps"]]
    assert families == sorted(families, key=FAMILIES.index)
    assert compile(model).params.degree >= 4096


def test_the_registry_has_a_method_of_every_family() -> None:
    """The default recipe has one of each, and runs (above)."""
    assert {method.card.family for method in METHODS.values()} == set(FAMILIES)
    used = {step.card.family for step in Recipe.load(RECIPES / "digits-cnn-default.toml").steps}
    assert used == set(FAMILIES)
