"""Progressive pruning by ADMM: ever sparser steps, each from the masked model of the last.

The paper's (Ye et al., arXiv 1903.09769): each step trains towards its sparsity by ADMM with a growing rho, cuts to it
exactly (masked mapping), and retrains under the mask; what a step cuts stays zero in the next, so that the search space
shrinks; ratios are set per layer. The project's own: where no ratios are given, those of a step follow from the
magnitudes in the whole network at its start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from he_runtime.errors import ModelError

from ..cores.admm import Admm, admm
from ..cores.masked import retrain
from ..cores.session import Floats, arrays
from ..graph import weight_keys
from ..masks import Mask, magnitude_mask
from ..settings import Training, require
from ..stage import Stage
from ..structures import Layer, Weights
from .method import Card, Method, register

__all__ = ["ProgressiveAdmm"]


@register(
    Card(
        "progressive",
        "pruning",
        "single weights",
        "products in column packing: one for each weight left and output position",
        "Ye et al., arXiv 1903.09769",
    )
)
@dataclass(frozen=True)
class ProgressiveAdmm(Method):
    """`densities` of the whole network, falling, one per step. One density alone is ADMM in one shot.

    `layers` is the share that stays of each layer in the end, by node name; every layer must then be named, `densities` give the
    pace only (a step at density d of the last e keeps the share of a layer to the power log d / log e), and the whole keeps
    what the layers do. Otherwise every layer keeps at least the part `minimum` of all weights. `training` is that of the masked
    retraining after each step.
    """

    densities: tuple[float, ...] = (0.3, 0.1)
    layers: Mapping[str, float] = field(default_factory=dict)
    minimum: float = 0.0005
    admm: Admm = field(
        default_factory=lambda: Admm(Training(epochs=3, learning_rate=5e-3), rounds=6, rho=1e-2, growth=1.5)
    )
    training: Training = field(default_factory=lambda: Training(epochs=10, learning_rate=4e-3))

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.densities, self.densities[1:], strict=False))
        inside = bool(self.densities) and all(0 < d < 1 for d in self.densities)
        require(inside and falling, self, "densities in (0, 1) that fall")
        require(all(0 < d <= 1 for d in self.layers.values()), self, "layers in (0, 1]")
        require(0 <= self.minimum < 1, self, "minimum in [0, 1)")
        require(self.admm.hard, self, "admm.hard = true: a mask is what the projection leaves")

    def apply(self, stage: Stage) -> None:
        stage.need_unfolded("progressive")
        layers = stage.layers()
        self._check(stage, layers)
        residuals = []
        for number, density in enumerate(self.densities, 1):
            label = f"step {number}/{len(self.densities)}"
            kept = self._shares(stage, layers, density)
            projections = {key: partial(_strongest, layer, kept[key]) for key, layer in layers.items()}
            report = admm(stage, projections, self.admm, penalty=stage.penalty, label=f"{label}, ADMM")
            mask = Mask(report.keep, "unstructured", {"method": "progressive ADMM", "density": density})
            stage.report_mask(mask)  # refuses a collapse before it is trained
            retrain(stage, mask, self.training, label=f"{label}, retraining", penalty=stage.penalty)
            residuals.append([round(r, 6) for r in report.worst])
        stage.report(residuals=residuals)

    def _shares(self, stage: Stage, layers: Mapping[str, Layer], density: float) -> dict[str, float]:
        """Array -> the share that stays of it at this step."""
        if self.layers:
            pace = math.log(density) / math.log(self.densities[-1])
            return {key: self.layers[name] ** pace for key, name in weight_keys(stage.net.graph).items()}
        found = magnitude_mask(arrays(stage.net, layers, masked=True), density, self.minimum)
        return {key: float(keep.mean()) for key, keep in found.keep.items()}

    def _check(self, stage: Stage, layers: Mapping[str, Layer]) -> None:
        """Refuse before training what cannot be met."""
        names = set(weight_keys(stage.net.graph).values())
        if self.layers and set(self.layers) != names:
            raise ModelError(f"cannot prune layers {sorted(self.layers)}: need a density for each of {sorted(names)}")
        sizes = [math.prod(layer.shape) for layer in layers.values()]
        total, last = sum(sizes), self.densities[-1]
        least = max(1, sum(min(int(self.minimum * total), size) for size in sizes))
        if not self.layers and round(last * total) < least:
            raise ModelError(
                f"cannot prune to density {last:g}: got {round(last * total)} of {total} weights to keep, need {least} for the "
                f"minimum of every layer; try a density of {math.ceil(1e4 * least / total) / 1e4:g} or a lower minimum"
            )


def _strongest(layer: Layer, share: float, values: Floats) -> Floats:
    """The projection: exactly max(1, round(share * size)) weights stay, the largest."""
    return values * Weights().keep(layer, values**2, share)
