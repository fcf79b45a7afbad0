"""Kernels that keep one of a few patterns, and weak kernels nothing.

Ma et al., ECCV 2020, arXiv 2001.07710: the library from the trained network, the choice of a pattern by retained norm,
connectivity pruning and ADMM, in which patterns and kernels are chosen anew at every update. One pattern per input channel
is the project's own, to save rotations: all filters read the same taps of a channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from he_runtime.errors import ModelError

from ..cores.admm import Admm, Split, admm
from ..cores.masked import retrain
from ..cores.session import Floats, Projection, masks_of, weights
from ..graph import weight_keys
from ..masks import Mask
from ..settings import Training, require
from ..stage import Stage
from ..structures import Bools, KernelPatterns, Layer, PatternLibrary, default_entries, extract_library, random_library
from ..structures.kernel_patterns import ASSIGNMENTS
from .method import Card, Method, register

__all__ = ["Patterns"]


@register(
    Card(
        "patterns",
        "pruning",
        "a pattern of taps per kernel or input channel, and whole kernels",
        "products in column packing: those of the kept taps that fall inside the image",
        "Ma et al., An Image Enhancing Pattern-based Sparsity for Real-time Inference on Mobile Devices, ECCV 2020, "
        "arXiv 2001.07710",
    )
)
@dataclass(frozen=True)
class Patterns(Method):
    """Every convolution with more than one tap gets patterns; the share `connectivity` of its kernels stays.

    `layers` overrides the connectivity by node name, also of 1x1 convolutions, which have kernels but no patterns. With
    `per_filter` every filter keeps equally many kernels. The library holds the `size` most frequent patterns of `entries`
    taps (0: 4 of 3x3, 9 of 5x5) among the share `strongest` of the kernels. `assignment` is "kernel" (the paper) or
    "input_channel". `library` "random" draws the patterns instead: the control of the paper's claim.

    `rounds` of `training` each with penalty `rho` * `growth`^round, a hard cut, `retraining`. Dense layers stay whole.

    One pattern per input channel saves operands and rotations in diagonal packing where they count taps: in a layer whose
    channels are not packed together, such as the first one of an image. Deeper layers of a small network have an
    operand for nearly every offset of channels and taps, and keep them.
    """

    size: int = 8
    entries: int = 0
    strongest: float = 1.0
    library: str = "network"
    assignment: str = "kernel"
    connectivity: float = 1.0
    layers: Mapping[str, float] = field(default_factory=dict)
    per_filter: bool = False
    rounds: int = 6
    rho: float = 5e-2
    growth: float = 1.3
    training: Training = field(default_factory=lambda: Training(epochs=5, learning_rate=3e-3))
    retraining: Training = field(default_factory=lambda: Training(epochs=20, learning_rate=3e-3))

    def __post_init__(self) -> None:
        require(self.size >= 1 and self.entries >= 0, self, "size >= 1 and entries >= 0")
        require(0 < self.strongest <= 1, self, "strongest in (0, 1]")
        require(self.library in ("network", "random"), self, "library 'network' or 'random'")
        require(self.assignment in ASSIGNMENTS, self, f"assignment in {ASSIGNMENTS}")
        shares = (self.connectivity, *self.layers.values())
        require(all(0 < share <= 1 for share in shares), self, "connectivity and layers in (0, 1]")
        require(self.rounds >= 1 and self.rho > 0 and self.growth >= 1, self, "rounds >= 1, rho > 0, growth >= 1")

    def apply(self, stage: Stage) -> None:
        stage.need_unfolded("patterns")
        layers = self._layers(stage)
        library = self._library(stage, layers)
        structures = {key: self._structure(stage, layer, library) for key, layer in layers.items()}
        projections = {key: Split(_projection(structures[key], layers[key]), name="patterns") for key in layers}
        settings = Admm(self.training, self.rounds, self.rho, self.growth)
        report = admm(stage, projections, settings, penalty=stage.penalty, label="patterns")
        mask = self._mask(stage, structures, layers)
        retrain(stage, mask, self.retraining, penalty=stage.penalty)
        stage.report_mask(mask)
        stage.report(
            residuals=list(report.worst),
            library={f"{h}x{w}": library.of((h, w)).astype(int).tolist() for h, w in library.patterns},
            mass={f"{h}x{w}": library.mass((h, w)).round(6).tolist() for h, w in library.patterns},
            kernels={key: structures[key].kernel_count(layers[key], 1.0) for key in layers},
        )

    def _layers(self, stage: Stage) -> dict[str, Layer]:
        """The convolutions that are pruned; ModelError where there is none or a name or share cannot be used."""
        names = weight_keys(stage.net.graph)
        convolutions = {key: layer for key, layer in stage.layers().items() if layer.op == "conv2d"}
        known = sorted(names[key] for key in convolutions)
        unknown = sorted(set(self.layers) - set(known))
        if unknown:
            raise ModelError(f"cannot prune kernels of layers {unknown}: need some of {known}")
        found = {
            key: layer for key, layer in convolutions.items() if layer.kernel != (1, 1) or names[key] in self.layers
        }
        if not any(layer.kernel != (1, 1) for layer in found.values()):
            raise ModelError(
                f"cannot prune {stage.name!r} to patterns: got no convolution of more than one tap among {known}, need one; "
                "try the method 'unified' with structure 'kernel' or 'weight'"
            )
        for key, layer in found.items():
            self._check(names[key], layer)
        return found

    def _check(self, name: str, layer: Layer) -> None:
        share, taps = self.layers.get(name, self.connectivity), layer.kernel[0] * layer.kernel[1]
        kernels = layer.shape[1] if self.per_filter else layer.shape[0] * layer.shape[1]
        if round(share * kernels) < 1:
            each = "each filter of " if self.per_filter else ""
            raise ModelError(
                f"cannot keep {share:g} of the {kernels} kernels of {each}{name!r}: need at least one; nearest: a "
                f"connectivity of {1 / kernels:.4g}"
            )
        if self.entries > taps > 1:
            raise ModelError(f"cannot keep {self.entries} taps of {name!r}: its kernels have {taps}; nearest: {taps}")

    def _library(self, stage: Stage, layers: Mapping[str, Layer]) -> PatternLibrary:
        values = weights(stage.net)
        entries = self.entries or None
        if self.library == "network":
            return extract_library({key: values[key] for key in layers}, entries, self.size, self.strongest)
        sizes = sorted({layer.kernel for layer in layers.values()} - {(1, 1)})
        drawn = [random_library(k, self.size, entries or default_entries(k), stage.seed) for k in sizes]
        return PatternLibrary(
            {k: p for one in drawn for k, p in one.patterns.items()},
            {k: c for one in drawn for k, c in one.counts.items()},
        )

    def _structure(self, stage: Stage, layer: Layer, library: PatternLibrary) -> KernelPatterns:
        name = weight_keys(stage.net.graph)[layer.key]
        return KernelPatterns(library, self.assignment, self.layers.get(name, self.connectivity), self.per_filter)

    def _mask(self, stage: Stage, structures: Mapping[str, KernelPatterns], layers: Mapping[str, Layer]) -> Mask:
        before, values = masks_of(stage.net), weights(stage.net)
        keep: dict[str, Bools] = {}
        for key, layer in layers.items():
            alive = before.get(key, np.ones(layer.shape, dtype=np.bool_))
            keep[key] = structures[key].keep(layer, np.square(values[key]) * alive, 1.0)
        parameters = {"method": "patterns", "assignment": self.assignment, "connectivity": self.connectivity}
        return Mask(keep, "pattern", parameters)


def _projection(structure: KernelPatterns, layer: Layer) -> Projection:
    """The nearest array of the structure: what it keeps of the energy."""

    def projected(values: Floats) -> Floats:
        return values * structure.keep(layer, np.square(values), 1.0)

    return projected
