"""Whole generalized diagonals of the planner's own packing, the strongest of each layer (model_prep.packing.diagonals)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from he_runtime.compile import DEGREES
from he_runtime.errors import ModelError

from ..cores.masked import gradual
from ..cores.session import weights
from ..graph import weight_keys
from ..masks import Mask
from ..packing.diagonals import diagonal_mask
from ..packing.packing import packed_classes, planned_degree
from ..settings import Training, require
from ..stage import Stage
from .densities import need_densities
from .method import Card, Method, register
from .quadratics import FIT_SAMPLES

__all__ = ["DiagonalClasses"]


@register(
    Card(
        "diagonals",
        "pruning",
        "generalized diagonals",
        "products in diagonal packing: one for each diagonal left",
        "Halevi, Shoup, CRYPTO 2014, for the packing; Hunter (Cai et al., ASIA CCS 2022) for the structure",
    )
)
@dataclass(frozen=True)
class DiagonalClasses(Method):
    """The share `density` of each layer's diagonals stays; `layers` overrides it by node name.

    `degree` is the ring whose packing defines the diagonals (0: that of the plan before pruning). `ramp` as in
    GlobalMagnitude.
    """

    density: float = 1.0
    layers: Mapping[str, float] = field(default_factory=dict)
    ramp: float = 0.5
    degree: int = 0
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        need_densities(self)
        require(0 <= self.ramp <= 1, self, "ramp in [0, 1]")
        require(self.degree == 0 or self.degree in DEGREES, self, f"degree 0 or one of {DEGREES}")

    def apply(self, stage: Stage) -> None:
        stage.need_unfolded("diagonals")
        names = weight_keys(stage.net.graph)
        unknown = sorted(set(self.layers) - set(names.values()))
        if unknown:
            raise ModelError(f"cannot prune layers {unknown}: need some of {sorted(names.values())}")
        density = {key: self.layers.get(name, self.density) for key, name in names.items()}
        degree = self.degree or planned_degree(stage.graph(), stage.input_spec, stage.x[:FIT_SAMPLES])
        classes = packed_classes(stage.net.graph, degree)

        def choose(share: float) -> Mask:
            return diagonal_mask(weights(stage.net), classes, {key: 1 - (1 - d) * share for key, d in density.items()})

        stage.report_mask(gradual(stage, choose, self.training, self.ramp, penalty=stage.penalty))
