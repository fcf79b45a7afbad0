"""The choice of degrees: dynamic programming against enumeration, measured losses, planned levels."""

from __future__ import annotations

import itertools
import json
from functools import lru_cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from he_runtime import Plan, compile
from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel, InputSpec
from he_runtime.reference import calibrate
from model_prep.capture.capture import capture
from model_prep.folding.folding import fold, fold_affine
from model_prep.graph import Graph
from model_prep.polynomials.approximation import replace_sites
from model_prep.polynomials.degrees import DEGREES, choose_degrees, measure_losses, measure_ms, planned_levels
from model_prep.polynomials.merging import merge_linear


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class Branches(Chain):
    """Two sites on one branch, one on the other, a square of the user's behind them, one more site."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        left = F.silu(self.layers[1](F.relu(x)))
        right = torch.tanh(self.layers[2](x))
        return self.layers[3](F.gelu((left + right) ** 2))


class Tangle(Chain):
    """Neither in a row nor side by side: the two branches cross."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.layers[0](x)), F.silu(self.layers[1](x))
        c = torch.tanh(self.layers[2](a + b))
        return self.layers[3](c + F.gelu(b)) + a


@lru_cache
def network(kind: type[Chain], seed: int = 0) -> tuple[Graph, np.ndarray]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = kind().eval()
    x = np.random.default_rng(seed).normal(size=(256, 6)).astype(np.float32)
    return capture(module, x[:2]), x


def random_losses(graph: Graph, seed: int) -> dict[str, dict[int, float]]:
    rng = np.random.default_rng(seed)
    return {n.name: dict(zip(DEGREES, rng.uniform(size=5).tolist(), strict=True)) for n in graph.activations()}


def enumerate_best(graph: Graph, losses: dict[str, dict[int, float]], budget: int) -> float:
    """The least sum over every combination, each lowered by the runtime."""
    found = np.inf
    for combination in itertools.product(*(row.items() for row in losses.values())):
        total = sum(loss for _, loss in combination)
        if total < found:
            degrees = dict(zip(losses, (d for d, _ in combination), strict=True))
            found = total if planned_levels(graph, degrees) <= budget else found
    return float(found)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", [Chain, Branches])
def test_the_choice_is_the_best_of_all(kind: type[Chain], seed: int) -> None:
    graph, _ = network(kind)
    losses = random_losses(graph, seed)
    if kind is Branches:  # 81 combinations instead of 625
        losses = {site: {d: row[d] for d in (0, 3, 7)} for site, row in losses.items()}
    least = planned_levels(graph, dict.fromkeys(losses, 0))
    for budget in range(least, least + 8, 2):
        chosen = choose_degrees(graph, losses, budget).chosen
        assert chosen.levels <= budget
        assert chosen.levels == planned_levels(graph, chosen.degrees)
        assert chosen.loss == pytest.approx(enumerate_best(graph, losses, budget))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_tangled_network_never_exceeds_its_budget(seed: int) -> None:
    graph, _ = network(Tangle)
    losses = random_losses(graph, seed)
    for budget in range(planned_levels(graph, dict.fromkeys(losses, 0)), 13):
        chosen = choose_degrees(graph, losses, budget).chosen
        assert planned_levels(graph, chosen.degrees) <= budget
    # With room for everything nothing is given up.
    assert chosen.loss == pytest.approx(sum(min(row.values()) for row in losses.values()))


def test_the_frontier_falls_and_is_reported() -> None:
    graph, x = network(Chain)
    selection = choose_degrees(graph, measure_losses(graph, x), 4)
    levels, losses = zip(*((c.levels, c.loss) for c in selection.frontier), strict=True)
    assert list(levels) == sorted(set(levels)) and list(losses) == sorted(losses, reverse=True)
    assert levels[0] == 0 and levels[-1] == 12
    record = selection.to_json()
    assert record["chosen"] == {**record["frontier"][[c.levels for c in selection.frontier].index(4)]}
    assert set(record["losses"]) == set(selection.chosen.degrees)


def test_measured_losses_fall_with_the_degree_and_add_up_roughly() -> None:
    graph, x = network(Chain)
    losses = measure_losses(graph, x, (0, 2, 4, 8))
    for row in losses.values():
        assert list(row.values()) == sorted(row.values(), reverse=True) and row[0] > 0
    fixed = measure_losses(graph, x, (0, 2), sites=list(losses)[:1], keep={next(iter(losses)): 3})
    assert {site: list(row) for site, row in fixed.items()} == {next(iter(losses)): [3]}


def test_milliseconds_move_the_choice() -> None:
    graph, x = network(Chain)
    losses = measure_losses(graph, x, (0, 4))
    ms = measure_ms(graph, x, (0, 4), others=0)
    assert all(row[0] < row[4] for row in ms.values())
    free = choose_degrees(graph, losses, 6, ms=ms)
    dear = choose_degrees(graph, losses, 6, ms=ms, loss_per_ms=1e6)
    assert set(free.chosen.degrees.values()) == {4} and set(dear.chosen.degrees.values()) == {0}


def plan_of(graph: Graph, x: np.ndarray) -> tuple[CompressedModel, Plan]:
    model = calibrate(graph.to_model("m", InputSpec("", graph.input_shape)), x.astype(np.float64))
    return model, compile(model, max_error=1.0)


def test_degree_zero_lowers_the_planned_levels_and_layers_merge() -> None:
    graph, x = network(Chain)
    names = [n.name for n in graph.activations()]
    depths = []
    for removed in range(4):
        degrees = {name: 0 if i < removed else 2 for i, name in enumerate(names)}
        replaced = merge_linear(fold_affine(replace_sites(graph, x, degrees)[0]))
        assert sum(n.op == "dense" for n in replaced.nodes) == 4 - removed
        _, plan = plan_of(fold(replaced), x)
        depths.append(max(v.level for v in plan.values) - min(v.level for v in plan.values))
        assert depths[-1] == planned_levels(graph, degrees)
    assert depths == [3, 2, 1, 0]


@pytest.mark.parametrize("degrees", [(3, 7, 2), (15, 0, 3), (4, 8, 1)])
def test_levels_of_degrees_are_those_of_the_plan(degrees: tuple[int, ...]) -> None:
    graph, x = network(Chain)
    chosen = dict(zip([n.name for n in graph.activations()], degrees, strict=True))
    _, plan = plan_of(fold(replace_sites(graph, x, chosen)[0]), x)
    assert max(v.level for v in plan.values) - min(v.level for v in plan.values) == planned_levels(graph, chosen)


def test_impossible_requests_are_refused() -> None:
    graph, _ = network(Branches)
    losses = random_losses(graph, 0)
    with pytest.raises(ModelError, match="within 0 levels: need at least 2;"):
        choose_degrees(graph, losses, 0)
    with pytest.raises(ModelError, match="need at least one of each"):
        choose_degrees(graph, dict(list(losses.items())[1:]), 5)
    with pytest.raises(ModelError, match="no number"):
        choose_degrees(graph, losses | {next(iter(losses)): {2: float("nan")}}, 5)
    with pytest.raises(ModelError, match="finite loss"):
        choose_degrees(graph, losses | {next(iter(losses)): {2: float("inf")}}, 5)
    with pytest.raises(ModelError, match="need an activation"):
        planned_levels(graph, {"layers.0": 2})


def test_what_is_ruled_out_stays_out_and_is_plain_data() -> None:
    graph, _ = network(Chain)
    losses = {site: {2: 0.1, 4: 0.01, 8: float("inf")} for site in (n.name for n in graph.activations())}
    ms = {site: {2: 1.0, 4: float("inf"), 8: 1.0} for site in losses}
    free, weighed = (choose_degrees(graph, losses, 9, ms=ms, loss_per_ms=w) for w in (0.0, 1e-9))
    assert set(free.chosen.degrees.values()) == {4} and set(weighed.chosen.degrees.values()) == {2}
    assert "Infinity" not in json.dumps(free.to_json()) and free.to_json()["losses"]["relu"]["8"] is None
