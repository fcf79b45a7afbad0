"""Where DiaGrid starts from: which activations stay, on which ring, how its budget is divided, channels in which order.

Everything is compared by one measure: what the network that is left can still explain of its outputs (explained.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from he_runtime.errors import DoesNotFit
from he_runtime.wish import error_budget

from ..channels.fisher import diagonal_fisher
from ..cores.session import weights
from ..polynomials.merging import COST_SAMPLES, planned_ms
from ..stage import Stage
from .budget import Budget, budget_of
from .explained import input_covariances, unexplained
from .pricing import SAMPLES, Pricing, calibrated
from .removal import Line, lines, without
from .reorder import moved_net, reordering_for

__all__ = ["Search", "Start", "energy"]

Division = tuple[Budget, Budget]  # what may be on the way, and at the end
Floats = npt.NDArray[np.float64]
_NEAR = 1.2  # times the floor: closer to it the floor's own plan is priced
_SPENT = (1.0, 0.85, 0.7, 0.55)  # of the target, on a ring that holds no more


def energy(stage: Stage, fisher: Mapping[str, Floats]) -> dict[str, Floats]:
    """Fisher times squared weight: what the loss rises by, to second order, when a weight goes (LeCun et al., 1989)."""
    return {key: fisher[key] * value**2 for key, value in weights(stage.net).items()}


@dataclass(frozen=True)
class Start:
    """A network in its order, what it is to cost, and -log of what pruning and removed activations leave explained."""

    pricing: Pricing
    fisher: Mapping[str, Floats]
    target: float
    budget: Budget
    division: Division
    pruning_loss: float
    removal_loss: float = 0.0
    removed: tuple[str, ...] = ()

    @property
    def loss(self) -> float:
        return self.pruning_loss + self.removal_loss

    def rank(self) -> tuple[float, float]:
        """What explains most; where nothing meets the target, what comes nearest."""
        return self.loss, self.budget.least_ms

    def bound(self) -> float:
        """The error bound of its plan at the end, with the weights of now."""
        chosen = self.division[1].masks(energy(self.pricing.stage, self.fisher), self.target)
        return self.pricing.plan({key: choice.keep for key, choice in chosen.items()}).error_bound


@dataclass(frozen=True)
class Search:
    """The start for a `target` in milliseconds, from a network priced as it stands (`dense`); the rest are DiaGrid's settings."""

    dense: Pricing
    target: float
    saliency: int = 512
    gather: bool = True
    reorder: bool = True
    rows: int = 0
    removal: bool = True

    def run(self, rings: Sequence[int], headroom: float = 1.0) -> Start:
        """The network as it stands, or without activations as long as what is left explains more; then on one of `rings`.

        On a smaller ring than the dense plan's, the error bound may be the budget of the whole network over `headroom`.
        ModelError, with the floor, for a target below all of their floors.
        """
        best, stage = self._prepared(self.dense, self.target), self.dense.stage
        fixed = bool(self.rows or stage.net.masks or stage.net.rounding or stage.quantizers)
        while self.removal and not fixed:
            found = min(self._rivals(best, rings, headroom), key=Start.rank, default=best)
            if found.rank() >= best.rank():
                break
            best = found
        best.budget.need(self.target)
        return best

    @cached_property
    def _allowed(self) -> float:
        """What the margins of the whole network allow an error bound to be."""
        return error_budget(calibrated(self.dense.stage, {}))

    def _rivals(self, start: Start, rings: Sequence[int], headroom: float) -> Iterator[Start]:
        """With one activation less, what loses least by that first; what loses too much by that alone is left out."""
        stage, least = start.pricing.stage, start.loss
        stand_ins = lines(stage.net, stage.x[:SAMPLES])
        for name, line in sorted(stand_ins.items(), key=lambda item: item[1].lost):
            if start.removal_loss + line.lost < least and (found := self._without(start, name, line, rings, headroom)):
                least = min(least, found.loss)
                yield found

    def _without(self, start: Start, name: str, line: Line, rings: Sequence[int], headroom: float) -> Start | None:
        """On the smallest ring whose error the margins of the whole network allow: fewer weights err less."""
        stage, table = start.pricing.stage, self.dense.table
        cost = planned_ms(stage.x[:COST_SAMPLES], table)
        stage = replace(stage, net=without(stage.net, {name: line}, stage.x[:SAMPLES], cost))
        for degree in sorted(rings):
            for share in _SPENT:
                try:
                    found = self._prepared(Pricing(stage, table, degree), share * self.target)
                except DoesNotFit:
                    break
                if degree >= self.dense.degree or np.isinf(found.loss) or found.bound() * headroom <= self._allowed:
                    return replace(found, removal_loss=start.removal_loss + line.lost, removed=(*start.removed, name))
        return None

    def _prepared(self, pricing: Pricing, target: float) -> Start:
        """A network with its channels in order and its budget divided, where the target is not below its floor."""
        stage = pricing.stage
        model = stage.graph().to_model(stage.name, stage.input_spec)
        plain_ms = pricing.of({}, pitched=False)
        budget = budget_of(model, pricing.degree, pricing.table, plain_ms, gather=self.gather)
        fisher = self._fisher(stage)
        if target < _NEAR * budget.least_ms:
            budget = pricing.at_the_floor(budget, energy(stage, fisher))
        if target < budget.least_ms:
            return Start(pricing, fisher, target, budget, (budget, budget), np.inf)
        if self.reorder:
            order = reordering_for(stage.net, energy(stage, fisher), budget, target)
            fisher = order.applied(fisher)
            stage = replace(stage, net=moved_net(stage.net, order))
        division, loss = self._division(stage, budget, fisher, target)
        return Start(replace(pricing, stage=stage), fisher, target, budget, division, loss)

    def _division(
        self, stage: Stage, budget: Budget, fisher: Mapping[str, Floats], target: float
    ) -> tuple[Division, float]:
        """What may be on the way and at the end, and what that fails to explain: rows of the length asked for, or the best."""
        now, covariances = weights(stage.net), input_covariances(stage.net, stage.x[:SAMPLES])

        def loss(division: Division) -> float:
            end = division[1]
            chosen = end.masks(energy(stage, fisher), target)
            return unexplained(chosen, now, covariances) if end.total_ms(chosen) <= target else np.inf

        if self.rows:
            divisions = [(budget.with_rows(self.rows), budget.with_rows(self.rows, exactly=True))]
        else:
            divisions = [division for division in budget.divisions() if division[1].least_ms <= target]
        losses = [loss(division) for division in divisions]
        best = int(np.argmin(losses))
        return divisions[best], losses[best]

    def _fisher(self, stage: Stage) -> dict[str, Floats]:
        keys = stage.net.weight_keys()
        if not self.saliency:
            return {key: np.ones(tuple(stage.net.parameter(key).shape)) for key in keys}
        count = self.saliency
        return dict(diagonal_fisher(stage.net, stage.x[:count], stage.y[:count], micro_batch=8))
