"""Activations to polynomials of chosen degrees: given ones, or the best ones within a budget of levels.

The parts are published: degrees per layer by search within a level budget (AutoFHE), the search as dynamic programming
(OLA), one site after the other (SmartPAF), clipping and the penalty on ranges (PILLAR). The project's own are that the
levels are those of the runtime's lowering, which the choice is checked against, that a removed activation's neighbours
merge where that is planned to pay, and that milliseconds may weigh on the choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from he_runtime.chebyshev import MAX_DEGREE
from he_runtime.errors import ModelError

from ..graph import LINEAR_OPS, Graph
from ..polynomials.approximation import replace_progressively
from ..polynomials.degrees import DEGREES, choose_degrees, measure_losses, measure_ms, planned_levels
from ..polynomials.merging import COST_SAMPLES, planned_ms, simplified
from ..polynomials.polynomial import constrain
from ..settings import require
from ..stage import Stage
from ..train import Hooks
from ..trainable import TrainableGraph
from .method import Card, register
from .quadratics import FIT_SAMPLES, Quadratics

__all__ = ["ChosenDegrees"]

ORDERS = ("together", "progressive")


@register(
    Card(
        "polynomials",
        "approximation",
        "one polynomial per activation and channel, a degree per activation",
        "levels: ceil(log2 degree) for each activation, none where it is removed",
        "AutoFHE (Ao, Boddeti, USENIX Security 2024); SmartPAF (MLSys 2024); PILLAR (Diaa et al., USENIX Security 2024)",
    )
)
@dataclass(frozen=True)
class ChosenDegrees(Quadratics):
    """`degree` for all activations (2 where nothing else is said), or the best within `levels` of the whole network.

    `degrees` fixes some by name; `remove` names those that go (degree 0: a line, which the layers around it absorb, so
    they merge). For `levels`, each activation gets one of `candidates`; `loss_per_ms` is what a predicted millisecond
    weighs, in units of the distillation loss. In the order "together" all are mixed in over one run of `training`; in
    "progressive" each is put in whole and has a run of its own, first activation first.
    """

    degree: int | None = None
    degrees: Mapping[str, int] = field(default_factory=dict)
    levels: int | None = None
    candidates: tuple[int, ...] = DEGREES
    remove: tuple[str, ...] = ()
    order: str = "together"
    loss_per_ms: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [*self.degrees.values(), *self.candidates, self.degree or 0]
        require(self.degree is None or self.levels is None, self, "a degree for all or levels, not both")
        require(all(0 <= d <= MAX_DEGREE for d in given), self, f"degree, degrees and candidates in 0..{MAX_DEGREE}")
        require(bool(self.candidates), self, "at least one of candidates")
        require(self.levels is None or self.levels >= 0, self, "levels >= 0")
        require(not set(self.degrees) & set(self.remove), self, "degrees for none that is in remove")
        require(self.order in ORDERS, self, f"order in {ORDERS}")
        require(self.loss_per_ms >= 0, self, "loss_per_ms >= 0")

    def apply(self, stage: Stage) -> None:
        stage.need_unfolded(self.card.name)
        before = stage.graph()
        degrees = self._choose(stage, before)
        if min(degrees.values(), default=2) < 2 and stage.net.masks:
            raise ModelError(f"cannot apply {self.card.name!r} after pruning: removal merges layers; try it earlier")
        if self.order == "together":
            self.together(stage, degrees)
        else:
            self._progressively(stage, degrees)
        layers = _layers(stage.net.graph)
        if min(degrees.values(), default=2) < 2:
            cost = planned_ms(stage.x[:COST_SAMPLES])
            stage.replace_net(simplified(stage.net, stage.x[:FIT_SAMPLES], cost))
        merged = layers - _layers(stage.net.graph)
        levels = planned_levels(before, degrees)
        stage.report(sites=len(degrees), degrees=dict(degrees), levels=levels, merged_layers=merged)

    def _choose(self, stage: Stage, graph: Graph) -> dict[str, int]:
        names = [node.name for node in graph.activations()]
        fixed = {**self.degrees, **dict.fromkeys(self.remove, 0)}
        unknown = sorted(set(fixed) - set(names))
        if unknown:
            raise ModelError(f"cannot replace activations {unknown}: need some of {names}")
        if self.levels is None:
            return dict.fromkeys(names, 2 if self.degree is None else self.degree) | fixed
        x = stage.x[:FIT_SAMPLES]
        losses = measure_losses(graph, x, self.candidates, keep=fixed)
        ms = measure_ms(graph, x[:COST_SAMPLES], self.candidates, keep=fixed) if self.loss_per_ms else None
        selection = choose_degrees(graph, losses, self.levels, ms=ms, loss_per_ms=self.loss_per_ms)
        stage.report(selection=selection.to_json())
        return dict(selection.chosen.degrees)

    def _progressively(self, stage: Stage, degrees: Mapping[str, int]) -> None:
        def train(net: TrainableGraph, site: str) -> None:
            net.masks = dict(stage.net.masks)
            stage.replace_net(net)
            hooks = Hooks(after_step=lambda: constrain(net), penalty=stage.penalty)
            stage.fit(self.training, f"{self.card.name}: {site}", hooks)

        graph = stage.graph()
        self.start(stage, graph, {})  # the penalty holds in every run
        self.start(stage, *replace_progressively(graph, stage.x[:FIT_SAMPLES], degrees, train))


def _layers(graph: Graph) -> int:
    return sum(node.op in LINEAR_OPS for node in graph.nodes)
