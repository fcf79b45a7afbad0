"""Global magnitude pruning with a minimum threshold and a gradual schedule (Gupta et al., arXiv 2209.14624).

The paper's: one ranking of |w| over all layers, the minimum per layer, re-ranking while sparsity rises. The project's own:
the schedule (cubic, each epoch; the paper's is not known to it), shadow weights, ties by index so that counts are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from he_runtime.errors import ModelError

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
        require(0 < self.density <= 1, self, "density in (0, 1]")
        require(0 <= self.ramp <= 1 and 0 <= self.minimum < 1, self, "ramp in [0, 1] and minimum in [0, 1)")

    def apply(self, stage: Stage) -> None:
        stage.need_unfolded("magnitude")
        self._check([layer.size for layer in stage.layers().values()])

        def choose(share: float) -> Mask:
            return magnitude_mask(weights(stage.net), 1 - (1 - self.density) * share, self.minimum)

        mask = gradual(stage, choose, self.training, self.ramp, penalty=stage.penalty)
        stage.report_mask(mask)
        # The paper's FLOPs sparsity; here also the share of products in column packing that is gone, but for borders.
        stage.report(flops_sparsity=1 - mask.multiply_add_density(stage.net.graph.positions()))

    def _check(self, sizes: list[int]) -> None:
        """Refuse before training what the minimum does not allow: ModelError with the nearest density."""
        total = sum(sizes)
        least = sum(min(int(self.minimum * total), size) for size in sizes)
        if max(least, 1) > round(self.density * total):
            raise ModelError(
                f"cannot prune to density {self.density:g}: got {round(self.density * total)} of {total} weights to keep, "
                f"need {max(least, 1)} for the minimum of every layer; try a density of "
                f"{math.ceil(1e4 * max(least, 1) / total) / 1e4:g} or a lower minimum"
            )
