"""Global magnitude pruning with a minimum threshold and a gradual schedule (methods.md, section 4)."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..cores.masked import gradual
from ..cores.session import weights
from ..masks import Mask, magnitude_mask
from ..settings import Training, require
from ..stage import Stage
from .method import Card, Method, register

__all__ = ["GlobalMagnitude"]


@register(
    Card(
        "magnitude",
        "pruning",
        "single weights",
        "products in column packing: one for each weight left and output position",
        "Gupta et al., Is Complexity Required for Neural Network Pruning?, arXiv 2209.14624",
    )
)
@dataclass(frozen=True)
class GlobalMagnitude(Method):
    """The share `density` of all weights stays, ranked over the whole network.

    Every layer keeps at least the part `minimum` of all prunable weights. Sparsity rises (cubic) over the part `ramp` of
    the epochs, ranked anew each epoch from dense shadow weights; at 0 the mask is cut once.
    """

    density: float = 1.0
    minimum: float = 0.0005
    ramp: float = 0.5
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        require(0 < self.density <= 1, "magnitude", "density in (0, 1]")
        require(0 <= self.ramp <= 1 and 0 <= self.minimum < 1, "magnitude", "ramp in [0, 1] and minimum in [0, 1)")

    def apply(self, stage: Stage) -> None:
        stage.need_unfolded("magnitude")

        def choose(share: float) -> Mask:
            return magnitude_mask(weights(stage.net), 1 - (1 - self.density) * share, self.minimum)

        stage.report_mask(gradual(stage, choose, self.training, self.ramp, penalty=stage.penalty))
