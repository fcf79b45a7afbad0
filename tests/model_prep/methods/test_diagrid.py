"""DiaGrid: the plan meets its budget, operations follow from the mask by hand, the network still answers encrypted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest

from he_runtime import CompressedModel, Plan, compile, price
from he_runtime.cost import load_default
from he_runtime.errors import ModelError
from he_runtime.plan import Kind
from he_runtime.reference import forward
from model_prep import Recipe, compress
from model_prep.cores.session import weights
from model_prep.data import load
from model_prep.graph import Graph
from model_prep.grid.budget import Budget, budget_of
from model_prep.grid.explained import input_covariances, unexplained
from model_prep.grid.layer import Choice
from model_prep.methods import METHODS, DiaGrid
from model_prep.methods.diagrid import _Pricing
from model_prep.reference_models import random_reference
from model_prep.settings import Training
from model_prep.stage import Stage
from model_prep.trainable import TrainableGraph
from secateur.local import Local

TABLE = "tenseal"
SHARE = 0.8


@pytest.fixture(scope="module")
def model() -> CompressedModel:
    step = {
        "method": "diagrid",
        "target_share": SHARE,
        "backend": TABLE,
        "training": {"epochs": 20, "learning_rate": 4e-3},
    }
    table = {
        "name": "gridded",
        "network": "digits-mlp",
        "teacher": {"epochs": 15, "learning_rate": 5e-3},
        "steps": [{"method": "quadratics", "training": {"epochs": 4, "learning_rate": 2e-3}}, step],
    }
    return compress(None, Recipe.from_dict(table), quiet=True)


@pytest.fixture(scope="module")
def plan(model: CompressedModel) -> Plan:
    return compile(model, table=load_default(TABLE))


def test_the_plan_meets_its_budget(model: CompressedModel, plan: Plan) -> None:
    report = model.metadata["steps"][1]
    assert report["target_ms"] == pytest.approx(SHARE * report["dense_ms"])
    planned = price(plan, load_default(TABLE)).latency_ms
    assert planned == pytest.approx(report["planned_ms"], rel=0.05)
    assert planned <= 1.03 * report["target_ms"]
    assert model.metadata["accuracy"]["diagrid"] >= 0.9


@pytest.mark.parametrize(
    ("planned", "used"),
    [
        ([0.98], 0),
        ([1.1, 0.7, 1.1, 0.8, 1.2, 0.75], 3),  # to and fro: the dearest within the target
        ([1.3, 1.1, 0.99], 2),
        ([1.3, 1.2, 1.1, 1.05, 1.04, 1.03], 6),  # none is: what comes after the last correction
    ],
)
def test_a_budget_whose_plan_meets_the_target_counts(planned: list[float], used: int) -> None:
    class Leaping(_Pricing):
        def __init__(self) -> None:
            self.left = iter(planned)

        def of(self, keep: Mapping[str, npt.NDArray[np.bool_]]) -> float:
            return next(self.left)

    class Numbered:
        def __init__(self, number: int) -> None:
            self.number = number

        def masks(self, *_: object) -> dict[str, Choice]:
            return {}

        def total_ms(self, _: object) -> float:
            return 1.0

        def corrected(self, *_: float) -> Numbered:
            return Numbered(self.number + 1)

    assert Leaping().corrected(Numbered(0), {}, 1.0).number == used  # type: ignore[arg-type, attr-defined]


def test_products_are_the_diagonals_that_the_mask_leaves(model: CompressedModel, plan: Plan) -> None:
    """A dense layer (m, n) has min(m, n) diagonals, padded to powers of two: (column - row) mod that."""
    cells = {op.layer: len(op.cells) for op in plan.ops if op.kind is Kind.LINEAR_TRANSFORM}
    for name, count in cells.items():
        weight = np.asarray(model.arrays[f"{name}.weight"])
        rows, columns = np.nonzero(weight)
        modulus = min(1 << (side - 1).bit_length() for side in weight.shape)
        longest = int(np.bincount(rows).max())
        diagonals = len(np.unique((columns - rows) % modulus))
        gathered = -(-longest * 64 // (plan.params.degree // 2))  # a gathered first layer: its rows' length in slots
        staggered = {1} if name == "fc1" else set()  # all diagonals of a staggered 64 x 64 layer are one operand
        assert count in {diagonals, gathered if name == "fc1" else diagonals, *staggered}, name
    assert cells["fc2"] < 64


def test_encrypted_answers_are_the_clear_ones(model: CompressedModel, plan: Plan) -> None:
    local = Local(plan, TABLE)
    x = load("digits").normalized("test")[:100].astype(np.float64)
    wanted = forward(model, x)
    got = np.stack([local.timed(image)[1] for image in x])
    assert local.executor.counters == plan.counts_on(TABLE)
    assert (got.argmax(1) == wanted.argmax(1)).sum() >= 99
    assert np.abs(got - wanted).max() <= 1.5 * plan.error_bound


def test_a_target_below_the_floor_is_refused_with_the_floor() -> None:
    with pytest.raises(ModelError, match=r"cannot prune to 0.01 ms: .* need at least"):
        compress(
            None,
            Recipe.from_dict(
                {"name": "x", "network": "digits-mlp", "steps": [{"method": "diagrid", "target_ms": 0.01}]}
            ),
            load("digits").subset(200, 50),
            quiet=True,
        )


@pytest.fixture(scope="module")
def stage() -> Stage:
    """A trained reference network, as a step finds it."""
    model, data = random_reference("digits-mlp"), load("digits")
    x, y = data.normalized("train").astype(np.float32), data.y_train
    net = TrainableGraph(Graph.from_model(model))
    return Stage("s", net, net, model.input, model.output.labels, x, y, x[:50], y[:50])


def test_the_division_explains_no_less_than_any_other_within_the_target(stage: Stage) -> None:
    method, pricing = DiaGrid(target_share=0.6, backend=TABLE), _Pricing(stage, load_default(TABLE))
    model = stage.graph().to_model("s", stage.input_spec)
    budget = budget_of(model, pricing.degree, pricing.table, pricing.of({}, pitched=False))
    fisher = method._fisher(stage)
    energy = {key: fisher[key] * value**2 for key, value in weights(stage.net).items()}
    target, covariances = 0.6 * pricing.dense_ms, input_covariances(stage.net, stage.x[:2048])

    def loss(end: Budget) -> float:
        chosen = end.masks(energy, target)
        return unexplained(chosen, weights(stage.net), covariances) if end.total_ms(chosen) <= target else np.inf

    losses = [loss(end) for _, end in budget.divisions() if end.least_ms <= target]
    way, end = method._division(stage, budget, fisher, target)
    assert len(losses) > 3 and loss(end) == min(losses) < np.inf
    assert end in [e for w, e in budget.divisions() if w == way]
    fixed = DiaGrid(target_share=0.6, backend=TABLE, rows=16)._division(stage, budget, fisher, target)
    assert fixed == (budget.with_rows(16), budget.with_rows(16, exactly=True))


def test_prices_are_those_of_the_ring_that_is_asked_for(stage: Stage) -> None:
    usual, larger = (_Pricing(stage, load_default(TABLE), degree) for degree in (0, 16384))
    assert (usual.degree, larger.degree) == (8192, 16384) and larger.dense_ms > 1.5 * usual.dense_ms


def test_settings_are_checked_and_registered() -> None:
    with pytest.raises(ModelError, match="degree 0 or one of"):
        DiaGrid(degree=5000)
    assert METHODS["diagrid"] is DiaGrid and DiaGrid.card.family == "pruning"
    with pytest.raises(ModelError, match="target_share"):
        DiaGrid(target_share=0.0, training=Training())
