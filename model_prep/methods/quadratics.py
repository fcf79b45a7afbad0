"""Activations to learned quadratics, mixed in slowly and distilled (model_prep.polynomials.polynomial)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..graph import Graph
from ..polynomials.approximation import replace_sites
from ..polynomials.polynomial import constrain, range_penalty
from ..settings import Training, require
from ..stage import Stage
from ..train import Hooks
from ..trainable import Site, TrainableGraph
from .method import Card, Method, register

__all__ = ["FIT_SAMPLES", "Quadratics", "SitePenalty", "site_penalty"]

FIT_SAMPLES = 2048
MAX_EXPONENT = 64  # already a wall: 1e-3 at 0.9 of the range, 1e7 at 1.3 of it


@register(
    Card(
        "quadratics",
        "approximation",
        "one quadratic per activation and channel",
        "levels: one for each activation",
        "AutoFHE (Ao, Boddeti, USENIX Security 2024); PILLAR (Diaa et al., USENIX Security 2024)",
    )
)
@dataclass(frozen=True)
class Quadratics(Method):
    """`blend` is the part of the epochs over which polynomials are mixed in; a network of squares only passes through.

    The penalty mean(|x / r|^exponent) keeps each quadratic's input x within the radius r that its activation saw.
    """

    training: Training = field(default_factory=Training)
    blend: float = 1 / 3
    range_penalty: float = 1e-3
    range_exponent: int = 6

    def __post_init__(self) -> None:
        require(0 <= self.blend <= 1, self, "blend in [0, 1]")
        require(self.range_penalty >= 0, self, "range_penalty >= 0")
        even = self.range_exponent % 2 == 0
        require(even and 2 <= self.range_exponent <= MAX_EXPONENT, self, f"an even range_exponent in 2..{MAX_EXPONENT}")

    def apply(self, stage: Stage) -> None:
        stage.need_unfolded(self.card.name)
        degrees = {node.name: 2 for node in stage.net.graph.activations()}
        self.together(stage, degrees)
        stage.report(sites=len(degrees))

    def together(self, stage: Stage, degrees: Mapping[str, int]) -> None:
        """Replace activations by polynomials of some degrees, all in one run of training, and mix them in."""
        net = self.start(stage, *replace_sites(stage.graph(), stage.x[:FIT_SAMPLES], degrees))
        if not degrees:
            return

        def mix(progress: float) -> None:
            net.blend = 1.0 if progress >= self.blend else progress / self.blend

        hooks = Hooks(before_step=mix, after_step=lambda: constrain(net), penalty=stage.penalty)
        stage.fit(self.training, self.card.name, hooks)
        net.blend = 1.0

    def start(self, stage: Stage, graph: Graph, sites: Mapping[str, Site]) -> TrainableGraph:
        """Go on with a network in which activations were replaced; what was pruned before stays pruned."""
        net = TrainableGraph(graph, sites)
        net.masks = dict(stage.net.masks)
        stage.replace_net(net)
        stage.penalty = site_penalty(stage, self.range_penalty, self.range_exponent)
        return net


def site_penalty(stage: Stage, weight: float, exponent: int) -> SitePenalty | None:
    """The penalty on inputs of polynomials that leave their range, of whatever network the stage has; None for weight 0."""
    return SitePenalty(stage, weight, exponent) if weight else None


@dataclass(frozen=True, eq=False)
class SitePenalty:
    """weight * range_penalty of the stage's network as it is when called. A class, so that it can be kept on disk."""

    stage: Stage
    weight: float
    exponent: int

    def __call__(self) -> Tensor:
        return self.weight * range_penalty(self.stage.net, self.exponent)
