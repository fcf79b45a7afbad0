"""DiaGrid: pruning co-designed with the packing, towards a latency in milliseconds. The project's own method.

A layer in diagonal packing is a grid of products on baby and giant lines of rotations (model_prep.grid). Saliency is Fisher
information times the squared weight; neurons are reordered so that the grid that may stay holds most of it; then what loses
least saliency per predicted millisecond goes, line by line and cell by cell over all layers together, while training goes
on, until the plan meets its budget. A dense first layer may instead be gathered by the client, where rows of equal length
cost next to nothing. Where the budget is tight, activations go before weights (model_prep.grid.start).
(docs/decisions/0024, 0036 and 0038; grids: Halevi, Shoup, CRYPTO 2018; reweighted groups: Ma et al., arXiv 2001.08357;
load-balanced rows: Sun et al., arXiv 2112.10898.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from he_runtime.backends import default_backend
from he_runtime.compile import DEGREES, compile
from he_runtime.cost import CostTable, load_default
from he_runtime.errors import DoesNotFit, ModelError

from ..cores.admm import Admm, admm
from ..cores.masked import gradual
from ..cores.reweighted import Reweighted, reweighted
from ..grid.budget import Budget
from ..grid.pricing import Pricing, calibrated
from ..grid.start import Search, Start, energy
from ..grid.towards import budget_projections, grid_groupings
from ..masks import Mask
from ..settings import Training, require
from ..stage import Stage
from .method import Card, Method, register

__all__ = ["DiaGrid"]

Floats = npt.NDArray[np.float64]
_HEADROOMS = (1.0, 2.0, np.inf)  # of the error on a smaller ring; with the last one only the dense plan's is left


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
    plan; the pruned network may fit a smaller one, and is then faster than asked). With `removal`, activations go where the
    network without them, merged and often on a smaller ring, explains more within the target than pruning leaves of the
    network with them; not where `rows` are given, nor in a network that is pruned or quantized already. Should the trained
    network err too much for such a ring, training starts over with more headroom there.

    Sparsity rises over the part `ramp` of the epochs, the budget falling in equal ratios. `saliency` is how many training
    samples the Fisher information is taken over; 0 ranks by squared weights alone. A gathered first layer keeps `rows`
    weights in each row (0: where layers still explain most of their outputs). `reweighting` and `admm`, off by default,
    train towards a grid before the descent. Raises ModelError for a target below the floor of the network's shape.
    """

    target_ms: float = 0.0
    target_share: float = 0.25
    backend: str = ""
    degree: int = 0
    gather: bool = True
    removal: bool = True
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
        require(self.target_ms >= 0, self, "target_ms >= 0")
        require(0 < self.target_share <= 1, self, "target_share in (0, 1]")
        require(self.saliency >= 0 and 0 <= self.ramp <= 1, self, "saliency >= 0 and ramp in [0, 1]")
        require(self.rows >= 0, self, "rows >= 0")
        require(self.degree == 0 or self.degree in DEGREES, self, f"degree 0 or one of {DEGREES}")

    def apply(self, stage: Stage) -> None:
        stage.need_unfolded("diagrid")
        table = load_default(self.backend or default_backend())
        dense, dense_ms = self._dense(stage, table)
        target = self.target_ms or self.target_share * dense_ms
        search = Search(
            dense, target, saliency=self.saliency, gather=self.gather, reorder=self.reorder, rows=self.rows,
            removal=self.removal,
        )  # fmt: skip
        whole, rings = stage.net, [self.degree] if self.degree else [n for n in DEGREES if n <= dense.degree]
        for headroom in _HEADROOMS:
            start = search.run(rings, headroom)
            pricing, mask = self._pruned(stage, start)
            if pricing.degree == dense.degree or pricing.holds(mask.keep):
                break
            stage.replace_net(whole)  # trained, it errs too much on that ring: once more
        stage.report_mask(mask)
        stage.report(target_ms=target, dense_ms=dense_ms, planned_ms=pricing.of(mask.keep))
        stage.report(degree=pricing.degree, removed=list(start.removed))

    def _dense(self, stage: Stage, table: CostTable) -> tuple[Pricing, float]:
        """Prices of the network before pruning, and its own."""
        needed = compile(calibrated(stage, {}), table=table).params.degree
        dense = Pricing(stage, table, self.degree or needed)
        try:
            return dense, dense.of({})
        except DoesNotFit as error:
            raise ModelError(
                f"cannot prune on a ring of degree {self.degree}: the network before pruning needs {needed}; try that, or "
                "degree = 0, with which activations may go for a smaller ring"
            ) from error

    def _pruned(self, stage: Stage, start: Start) -> tuple[Pricing, Mask]:
        """The network of a start, trained while its plan comes down to the target."""
        stage.replace_net(start.pricing.stage.net)
        pricing, fisher, target = replace(start.pricing, stage=stage), start.fisher, start.target
        way, end = start.division
        end = pricing.corrected(end, energy(stage, fisher), target)
        self._towards(stage, end, fisher, target)
        way = replace(way, fixed_ms=end.fixed_ms)
        return pricing, self._descend(stage, pricing, (way, end), fisher, target)

    def _descend(
        self,
        stage: Stage,
        pricing: Pricing,
        budgets: tuple[Budget, Budget],
        fisher: Mapping[str, Floats],
        target: float,
    ) -> Mask:
        """Train while the budget falls, in equal ratios, by what may be on the way and then at the end; then retrain."""
        way, end = budgets
        start = pricing.of({})

        def choose(share: float) -> Mask:
            now = energy(stage, fisher)
            if share < 1:
                chosen = way.masks(now, start * (target / start) ** share)
            else:  # once more: weights, and with them masks, have moved since the first time
                chosen = pricing.corrected(end, now, target).masks(now, target)
            return Mask({key: choice.keep for key, choice in chosen.items()}, "grid", {"target_ms": target})

        return gradual(stage, choose, self.training, self.ramp, penalty=stage.penalty)

    def _towards(self, stage: Stage, budget: Budget, fisher: Mapping[str, Floats], target: float) -> None:
        """Training that moves the weights towards a grid within the budget, before any is cut."""
        if self.reweighting.epochs:
            groupings = grid_groupings(budget.masks(energy(stage, fisher), target))
            settings = Reweighted(self.reweighting, self.reweighting_rounds, self.strength)
            if groupings:
                reweighted(stage, groupings, settings, penalty=stage.penalty)
        if self.admm.epochs:
            chosen = budget.masks(energy(stage, fisher), target)
            settings_ = Admm(self.admm, self.admm_rounds, self.rho, hard=False)
            report = admm(stage, budget_projections(budget, fisher, chosen), settings_, penalty=stage.penalty)
            stage.report(residuals=[round(worst, 4) for worst in report.worst])
