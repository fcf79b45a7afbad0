"""DiaGrid: the plan meets its budget, operations follow from the mask by hand, the network still answers encrypted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from torch import nn

from he_runtime import CompressedModel, Plan, compile, price
from he_runtime.cost import load_default
from he_runtime.errors import ModelError
from he_runtime.plan import Kind
from he_runtime.reference import forward
from model_prep import Recipe, compress
from model_prep.cores.session import weights
from model_prep.data import load
from model_prep.graph import Graph
from model_prep.grid.budget import Budget
from model_prep.grid.explained import input_covariances, unexplained
from model_prep.grid.layer import Choice
from model_prep.grid.pricing import Pricing
from model_prep.grid.start import Search, energy
from model_prep.methods import METHODS, DiaGrid
from model_prep.reference_models import random_reference
from model_prep.settings import Training
from model_prep.stage import Stage
from model_prep.trainable import TrainableGraph
from secateur.local import Local

TABLE = "tenseal"
SHARE = 0.8


def made(**settings: object) -> CompressedModel:
    step = {"method": "diagrid", "backend": TABLE, **settings}
    table = {
        "name": "gridded",
        "network": "digits-mlp",
        "teacher": {"epochs": 15, "learning_rate": 5e-3},
        "steps": [{"method": "quadratics", "training": {"epochs": 4, "learning_rate": 2e-3}}, step],
    }
    return compress(None, Recipe.from_dict(table), quiet=True)


@pytest.fixture(scope="module")
def model() -> CompressedModel:
    """With both activations."""
    return made(target_share=SHARE, removal=False, training={"epochs": 20, "learning_rate": 4e-3})


@pytest.fixture(scope="module")
def linearized() -> CompressedModel:
    """At a budget that no network with both activations fits."""
    return made(target_share=0.24, training={"epochs": 12, "learning_rate": 4e-3})


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
    class Leaping(Pricing):
        def of(self, keep: Mapping[str, npt.NDArray[np.bool_]], *, pitched: bool = True) -> float:
            return next(left)

    left = iter(planned)

    class Numbered:
        def __init__(self, number: int) -> None:
            self.number = number

        def masks(self, *_: object) -> dict[str, Choice]:
            return {}

        def total_ms(self, _: object) -> float:
            return 1.0

        def corrected(self, *_: float) -> Numbered:
            return Numbered(self.number + 1)

    pricing = Leaping(None, None, 8192)  # type: ignore[arg-type]
    assert pricing.corrected(Numbered(0), {}, 1.0).number == used  # type: ignore[arg-type, attr-defined]


def test_products_are_the_diagonals_that_the_mask_leaves(model: CompressedModel) -> None:
    """A dense layer (m, n) has min(m, n) diagonals, padded to powers of two: (column - row) mod that."""
    plan = compile(model, table=load_default(TABLE), pitched=False)
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


@pytest.mark.parametrize("which", ["model", "linearized"])
def test_encrypted_answers_are_the_clear_ones(which: str, request: pytest.FixtureRequest) -> None:
    model: CompressedModel = request.getfixturevalue(which)
    plan = compile(model, table=load_default(TABLE))
    local = Local(plan, TABLE)
    x = load("digits").normalized("test")[:100].astype(np.float64)
    wanted = forward(model, x)
    got = np.stack([local.timed(image)[1] for image in x])
    assert local.executor.counters == plan.counts_on(TABLE)
    assert (got.argmax(1) == wanted.argmax(1)).sum() >= 99
    assert np.abs(got - wanted).max() <= 1.5 * plan.error_bound


def test_where_the_budget_is_tight_activations_go(linearized: CompressedModel) -> None:
    """As many squares fewer, as many layers merged, and half of the ring holds what is left."""
    report = linearized.metadata["steps"][1]
    gone = len(report["removed"])
    assert gone >= 1 and report["degree"] == 4096
    ops = [node.op for node in linearized.nodes]
    assert (ops.count("dense"), ops.count("quadratic")) == (3 - gone, 2 - gone)
    plan = compile(linearized, table=load_default(TABLE))
    assert plan.params.degree == 4096
    assert price(plan, load_default(TABLE)).latency_ms <= 1.03 * report["target_ms"] < 0.25 * report["dense_ms"]
    assert linearized.metadata["accuracy"]["final"] >= 0.95


def test_a_ring_that_is_too_small_for_the_whole_network_is_refused() -> None:
    with pytest.raises(
        ModelError, match="ring of degree 4096: the network before pruning needs 8192; try that, or degree = 0"
    ):
        made(degree=4096, training={"epochs": 1})


def test_a_ring_on_which_the_trained_network_errs_too_much_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def never(self: Pricing, keep: object) -> bool:
        asked.append(self.degree)
        return False

    monkeypatch.setattr(Pricing, "holds", never)
    found = made(target_share=0.24, training={"epochs": 1, "learning_rate": 4e-3}).metadata["steps"][1]
    assert set(asked) == {4096} and len(asked) <= 2 and found["degree"] == 8192, "the dense plan's is not asked about"
    assert found["planned_ms"] <= found["target_ms"]


@pytest.mark.parametrize("widths", [(64, 10), (64, 7, 10), (64, 1, 10)], ids=str)
def test_a_target_below_the_floor_is_refused_with_a_floor_that_is_met(widths: tuple[int, ...]) -> None:
    def pruned(target_ms: float) -> float:
        layers = [module for pair in pairwise(widths) for module in (nn.Linear(*pair), nn.ReLU())]
        step = DiaGrid(target_ms=target_ms, backend=TABLE, training=Training(epochs=1))
        module = nn.Sequential(nn.Flatten(), *layers[:-1])
        found = compress(module, step, load("digits").subset(200, 50), quiet=True)
        return float(found.metadata["steps"][-1]["planned_ms"])

    with pytest.raises(ModelError, match=r"cannot prune to 0.01 ms: .* need at least") as refused:
        pruned(0.01)
    floor = float(re.search(r"at least ([0-9.]+) ms", str(refused.value))[1])  # type: ignore[index]
    assert pruned(floor) <= floor
    with pytest.raises(ModelError, match="need at least"):
        pruned(0.97 * floor)


@pytest.fixture(scope="module")
def stage() -> Stage:
    """A trained reference network, as a step finds it."""
    model, data = random_reference("digits-mlp"), load("digits")
    x, y = data.normalized("train").astype(np.float32), data.y_train
    net = TrainableGraph(Graph.from_model(model))
    return Stage("s", net, net, model.input, model.output.labels, x, y, x[:50], y[:50])


def test_the_division_explains_no_less_than_any_other_within_the_target(stage: Stage) -> None:
    pricing = Pricing(stage, load_default(TABLE), 8192)
    target = 0.6 * pricing.of({})
    start = Search(pricing, target, reorder=False).run([8192])
    salient, covariances = energy(stage, start.fisher), input_covariances(stage.net, stage.x[:2048])

    def loss(end: Budget) -> float:
        chosen = end.masks(salient, target)
        return unexplained(chosen, weights(stage.net), covariances) if end.total_ms(chosen) <= target else np.inf

    losses = [loss(end) for _, end in start.budget.divisions() if end.least_ms <= target]
    way, end = start.division
    assert len(losses) > 3 and loss(end) == min(losses) == start.loss < np.inf and not start.removed
    assert end in [e for w, e in start.budget.divisions() if w == way]
    fixed = Search(pricing, target, reorder=False, rows=16).run([8192])
    assert fixed.division == (fixed.budget.with_rows(16), fixed.budget.with_rows(16, exactly=True))
    np.testing.assert_array_equal(fixed.fisher["fc1.weight"], start.fisher["fc1.weight"])


def test_prices_are_those_of_the_ring_that_is_asked_for(stage: Stage) -> None:
    usual, larger = (Pricing(stage, load_default(TABLE), degree).of({}) for degree in (8192, 16384))
    assert larger > 1.5 * usual


def test_settings_are_checked_and_registered() -> None:
    with pytest.raises(ModelError, match="degree 0 or one of"):
        DiaGrid(degree=5000)
    assert METHODS["diagrid"] is DiaGrid and DiaGrid.card.family == "pruning"
    with pytest.raises(ModelError, match="target_share"):
        DiaGrid(target_share=0.0, training=Training())
