"""Activations to learned quadratics, mixed in slowly and distilled (model_prep.polynomial)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..polynomial import constrain, range_penalty, replace_activations
from ..settings import Training, require
from ..stage import Stage
from ..train import Hooks
from ..trainable import TrainableGraph
from .method import Card, Method, register

__all__ = ["FIT_SAMPLES", "Quadratics", "site_penalty"]

FIT_SAMPLES = 2048


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
    """`blend` is the part of the epochs over which the quadratics are mixed in; a network of squares only passes through.

    The penalty mean(|x / r|^exponent) keeps each quadratic's input x within the radius r that its activation saw.
    """

    training: Training = field(default_factory=Training)
    blend: float = 1 / 3
    range_penalty: float = 1e-3
    range_exponent: int = 6

    def __post_init__(self) -> None:
        require(0 <= self.blend <= 1, "quadratics", "blend in [0, 1]")
        require(self.range_penalty >= 0, "quadratics", "range_penalty >= 0")
        require(self.range_exponent >= 2 and self.range_exponent % 2 == 0, "quadratics", "an even range_exponent >= 2")

    def apply(self, stage: Stage) -> None:
        stage.need_unfolded("quadratics")
        graph, sites = replace_activations(stage.graph(), stage.x[:FIT_SAMPLES])
        net = TrainableGraph(graph, sites)
        stage.replace_net(net)
        stage.penalty = site_penalty(stage, self.range_penalty, self.range_exponent)
        if sites:

            def mix(progress: float) -> None:
                net.blend = 1.0 if progress >= self.blend else progress / self.blend

            hooks = Hooks(before_step=mix, after_step=lambda: constrain(net), penalty=stage.penalty)
            stage.fit(self.training, "quadratics", hooks)
            net.blend = 1.0
        stage.report(sites=len(sites))


def site_penalty(stage: Stage, weight: float, exponent: int) -> Callable[[], Tensor] | None:
    """The penalty on inputs of polynomials that leave their range, of whatever network the stage has; None for weight 0."""
    if not weight:
        return None
    return lambda: weight * range_penalty(stage.net, exponent)
