"""DiaGrid: pruning co-designed with the packing, towards a latency in milliseconds. The project's own method.

A layer in diagonal packing is a grid of products on baby and giant lines of rotations (model_prep.grid). Saliency is Fisher
information times the squared weight; neurons are reordered so that the grid that may stay holds most of it; then what loses
least saliency per predicted millisecond goes, line by line and cell by cell over all layers together, while training goes
on, until the plan meets its budget. A dense first layer may instead be gathered by the client, where rows of equal length
cost next to nothing. (ckks-compression.md, section F2; grids: Halevi, Shoup, CRYPTO 2018; reweighted groups: Ma et al.,
arXiv 2001.08357; load-balanced rows: Sun et al., arXiv 2112.10898.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from he_runtime.backends import default_backend
from he_runtime.compile import DEGREES, compile
from he_runtime.cost import CostTable, load_default, price
from he_runtime.model import CompressedModel
from he_runtime.reference import calibrate

from ..channels.fisher import diagonal_fisher
from ..cores.admm import Admm, admm
from ..cores.masked import gradual
from ..cores.reweighted import Reweighted, reweighted
from ..cores.session import weights
from ..folding.folding import fold
from ..grid.budget import Budget, budget_of
from ..grid.explained import input_covariances, unexplained
from ..grid.reorder import moved_net, reordering_for
from ..grid.towards import budget_projections, grid_groupings
from ..masks import Bools, Mask
from ..settings import Training, require
from ..stage import Stage
from .method import Card, Method, register
from .quadratics import FIT_SAMPLES

__all__ = ["DiaGrid"]

Floats = npt.NDArray[np.float64]
_CORRECTIONS = 6
_ANY_ERROR = 1e3  # of a logit


@register(
    Card(
        "diagrid",
        "pruning",
        "baby steps x giant steps of the packing; rows of equal length in a gathered first layer",
        "rotations and products in diagonal packing, by their measured cost: milliseconds",
        "this project",
    )
)
@dataclass(frozen=True)
class DiaGrid(Method):
    """The plan's predicted latency comes down to `target_ms`, or to `target_share` of the dense plan's.

    Prices are those of `backend`'s shipped cost table (empty: the default back end's), at ring `degree` (0: that of the dense
    plan; the pruned network may fit a smaller one, and is then faster than asked). Sparsity rises over the part `ramp`
    of the epochs, the budget falling in equal ratios. `saliency` is how many training samples the Fisher information is
    taken over; 0 ranks by squared weights alone. A gathered first layer keeps `rows` weights in each row (0: where
    layers still explain most of their outputs). `reweighting` and `admm`, off by default, train towards a grid before the descent.
    Raises ModelError for a target below the floor of the network's shape.
    """

    target_ms: float = 0.0
    target_share: float = 0.25
    backend: str = ""
    degree: int = 0
    gather: bool = True
    rows: int = 0
    reorder: bool = True
    saliency: int = 512
    reweighting: Training = field(default_factory=Training)
    reweighting_rounds: int = 3
    strength: float = 1e-3
    admm: Training = field(default_factory=Training)
    admm_rounds: int = 4
    rho: float = 1e-2
    ramp: float = 0.4
    training: Training = field(default_factory=lambda: Training(epochs=20, learning_rate=2e-3))

    def __post_init__(self) -> None:
        require(self.target_ms >= 0, "diagrid", "target_ms >= 0")
        require(0 < self.target_share <= 1, "diagrid", "target_share in (0, 1]")
        require(self.saliency >= 0 and 0 <= self.ramp <= 1, "diagrid", "saliency >= 0 and ramp in [0, 1]")
        require(self.rows >= 0, "diagrid", "rows >= 0")
        require(self.degree == 0 or self.degree in DEGREES, "diagrid", f"degree 0 or one of {DEGREES}")

    def apply(self, stage: Stage) -> None:
        stage.need_unfolded("diagrid")
        pricing = _Pricing(stage, load_default(self.backend or default_backend()), self.degree)
        degree, dense_ms = pricing.degree, pricing.dense_ms
        target = self.target_ms or self.target_share * dense_ms
        model = stage.graph().to_model(stage.name, stage.input_spec)
        budget = budget_of(model, degree, pricing.table, pricing.of({}, pitched=False), gather=self.gather)
        budget.need(target)
        fisher = self._fisher(stage)
        if self.reorder:
            order = reordering_for(stage.net, _energy(stage, fisher), budget, target)
            fisher = order.applied(fisher)
            stage.replace_net(moved_net(stage.net, order))
        way, end = self._division(stage, budget, fisher, target)
        end = pricing.corrected(end, _energy(stage, fisher), target)
        self._towards(stage, end, fisher, target)
        way = replace(way, fixed_ms=end.fixed_ms)
        mask = self._descend(stage, pricing, (way, end), fisher, target)
        stage.report_mask(mask)
        stage.report(target_ms=target, dense_ms=dense_ms, planned_ms=pricing.of(mask.keep), degree=degree)

    def _division(
        self, stage: Stage, budget: Budget, fisher: Mapping[str, Floats], target: float
    ) -> tuple[Budget, Budget]:
        """What may be on the way and at the end: rows of the length asked for, or else whatever explains most of the outputs."""
        if self.rows:
            return budget.with_rows(self.rows), budget.with_rows(self.rows, exactly=True)
        divisions = budget.divisions()
        if len(divisions) == 1:
            return divisions[0]
        energy, now = _energy(stage, fisher), weights(stage.net)
        covariances = input_covariances(stage.net, stage.x[:FIT_SAMPLES])

        def loss(division: tuple[Budget, Budget]) -> float:
            end = division[1]
            chosen = end.masks(energy, target)
            return unexplained(chosen, now, covariances) if end.total_ms(chosen) <= target else np.inf

        possible = [division for division in divisions if division[1].least_ms <= target]
        return min(possible, key=loss)

    def _descend(
        self,
        stage: Stage,
        pricing: _Pricing,
        budgets: tuple[Budget, Budget],
        fisher: Mapping[str, Floats],
        target: float,
    ) -> Mask:
        """Train while the budget falls, in equal ratios, by what may be on the way and then at the end; then retrain."""
        way, end = budgets
        start = pricing.dense_ms

        def choose(share: float) -> Mask:
            energy = _energy(stage, fisher)
            if share < 1:
                chosen = way.masks(energy, start * (target / start) ** share)
            else:  # once more: weights, and with them masks, have moved since the first time
                chosen = pricing.corrected(end, energy, target).masks(energy, target)
            return Mask({key: choice.keep for key, choice in chosen.items()}, "grid", {"target_ms": target})

        return gradual(stage, choose, self.training, self.ramp, penalty=stage.penalty)

    def _towards(self, stage: Stage, budget: Budget, fisher: Mapping[str, Floats], target: float) -> None:
        """Training that moves the weights towards a grid within the budget, before any is cut."""
        if self.reweighting.epochs:
            groupings = grid_groupings(budget.masks(_energy(stage, fisher), target))
            settings = Reweighted(self.reweighting, self.reweighting_rounds, self.strength)
            if groupings:
                reweighted(stage, groupings, settings, penalty=stage.penalty)
        if self.admm.epochs:
            chosen = budget.masks(_energy(stage, fisher), target)
            settings_ = Admm(self.admm, self.admm_rounds, self.rho, hard=False)
            report = admm(stage, budget_projections(budget, fisher, chosen), settings_, penalty=stage.penalty)
            stage.report(residuals=[round(worst, 4) for worst in report.worst])

    def _fisher(self, stage: Stage) -> dict[str, Floats]:
        keys = stage.net.weight_keys()
        if not self.saliency:
            return {key: np.ones(tuple(stage.net.parameter(key).shape)) for key in keys}
        count = self.saliency
        return dict(diagonal_fisher(stage.net, stage.x[:count], stage.y[:count], micro_batch=8))


def _energy(stage: Stage, fisher: Mapping[str, Floats]) -> dict[str, Floats]:
    """Fisher times squared weight: what the loss rises by, to second order, when a weight goes (LeCun et al., 1989)."""
    return {key: fisher[key] * value**2 for key, value in weights(stage.net).items()}


class _Pricing:
    """What plans of a stage's network cost by one table."""

    def __init__(self, stage: Stage, table: CostTable, degree: int = 0) -> None:
        self.table, self._stage = table, stage
        self.degree = degree or compile(self._model({}), table=table).params.degree
        self.dense_ms = self.of({})

    def of(self, keep: Mapping[str, Bools], *, pitched: bool = True) -> float:
        """Predicted milliseconds of the network with these weights only (all of a layer that is not named), at its ring.

        Its margins are worth nothing before it is trained again, so the error budget is left out of it.
        """
        plan = compile(
            self._model(keep), table=self.table, degrees=(self.degree,), max_error=_ANY_ERROR, pitched=pitched
        )
        return price(plan, self.table).latency_ms

    def _model(self, keep: Mapping[str, Bools]) -> CompressedModel:
        graph = self._stage.graph()
        cut = {key: np.asarray(graph.arrays[key]) * mask for key, mask in keep.items()}
        graph = replace(graph, arrays={**graph.arrays, **cut})
        model = fold(graph).to_model("diagrid", self._stage.input_spec)
        return calibrate(model, self._stage.x[:FIT_SAMPLES].astype(np.float64))

    def corrected(self, budget: Budget, energy: Mapping[str, Floats], target: float) -> Budget:
        """The budget whose masks' *plans* meet the target: packing and splits change with what is left.

        Plans change in leaps, so corrections may go to and fro: of those tried, the dearest within the target counts.
        """
        best, within = 0.0, budget
        for _ in range(_CORRECTIONS):
            chosen = budget.masks(energy, target)
            planned = self.of({key: choice.keep for key, choice in chosen.items()})
            if best < planned <= target:
                best, within = planned, budget
            if 0.97 * target <= planned <= target:
                break
            budget = budget.corrected(planned, budget.total_ms(chosen))
        return within if best else budget
