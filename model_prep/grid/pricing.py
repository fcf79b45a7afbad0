"""What plans of a network in training would cost, by one table and on one ring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from he_runtime.compile import compile
from he_runtime.cost import CostTable, price
from he_runtime.errors import DoesNotFit
from he_runtime.model import CompressedModel
from he_runtime.plan import Plan
from he_runtime.reference import calibrate

from ..folding.folding import fold
from ..masks import Bools
from ..stage import Stage
from .budget import Budget

__all__ = ["SAMPLES", "Pricing", "calibrated"]

Floats = npt.NDArray[np.float64]
SAMPLES = 2048  # to calibrate and measure on
_CORRECTIONS = 6
_LEEWAY = 1.03
_ANY_ERROR = 1e3  # of a logit


def calibrated(stage: Stage, keep: Mapping[str, Bools]) -> CompressedModel:
    """The folded network of a stage with these weights only (all of a layer that is not named)."""
    graph = stage.graph()
    cut = {key: np.asarray(graph.arrays[key]) * mask for key, mask in keep.items()}
    graph = replace(graph, arrays={**graph.arrays, **cut})
    model = fold(graph).to_model("diagrid", stage.input_spec)
    return calibrate(model, stage.x[:SAMPLES].astype(np.float64))


@dataclass(frozen=True)
class Pricing:
    """Prices of a stage's network as it stands when asked, in milliseconds, on ring `degree`."""

    stage: Stage
    table: CostTable
    degree: int

    def of(self, keep: Mapping[str, Bools], *, pitched: bool = True) -> float:
        """Predicted latency with these weights only. DoesNotFit where the ring holds no plan."""
        return price(self.plan(keep, pitched=pitched), self.table).latency_ms

    def plan(self, keep: Mapping[str, Bools], *, pitched: bool = True) -> Plan:
        """Its margins are worth nothing before it is trained again, so the error budget is left out of it."""
        model = calibrated(self.stage, keep)
        return compile(model, table=self.table, degrees=(self.degree,), max_error=_ANY_ERROR, pitched=pitched)

    def holds(self, keep: Mapping[str, Bools]) -> bool:
        """Whether the network, trained, has margins that allow the error of this ring."""
        try:
            compile(calibrated(self.stage, keep), table=self.table, degrees=(self.degree,))
        except DoesNotFit:
            return False
        return True

    def at_the_floor(self, budget: Budget, energy: Mapping[str, Floats]) -> Budget:
        """The budget with the price of the *plan* of what it leaves at least: packing and splits change with that.

        And a little more, since what is left moves in training, and its plan with it.
        """
        planned = self.of({key: choice.keep for key, choice in budget.cheapest(energy).items()})
        return budget.corrected(_LEEWAY * planned, budget.least_ms)

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
