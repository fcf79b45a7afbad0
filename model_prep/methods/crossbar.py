"""Filters and columns pruned in multiples of a crossbar, weights on levels that a memristor holds.

Yuan et al., ISLPED 2019, arXiv 1908.11691: ADMM with both constraints at once, masked mapping of the weights nearest to a
level, retraining of the rest, with a growing share. The project's own: the last layer keeps its filters, which are the
outputs; everything runs on the folded network, whose weights are those that leave; levels are fitted to what the crossbars
keep, since a fit to all weights would follow those that go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from he_runtime.errors import ModelError

from ..cores.admm import Admm, Split, admm, on_support
from ..cores.masked import retrain
from ..cores.session import Floats, Projection, arrays, masks_of, weights
from ..cores.settled import Settle, settle
from ..crossbar_devices import array_cost
from ..graph import weight_keys
from ..masks import Bools, Mask
from ..quantizers import DeviceLevels, Quantized, Quantizer
from ..settings import Training, require
from ..stage import Stage
from ..structures import Crossbars, Layer
from .densities import need_densities
from .method import Card, Method, register
from .outputs import output_layer

__all__ = ["CrossbarAdmm"]

_Keep = Callable[[Floats], Bools]  # the mask of the crossbars that stay


@register(
    Card(
        "crossbars",
        "pruning",
        "filters and columns in multiples of a crossbar, device levels",
        "non-empty crossbars, which are the tiles of tile packing; products in column packing: one per weight left",
        "Yuan et al., An Ultra-Efficient Memristor-Based DNN Framework, ISLPED 2019, arXiv 1908.11691",
    )
)
@dataclass(frozen=True)
class CrossbarAdmm(Method):
    """At most the share `density` of each layer's crossbars of `rows` x `columns` stays; `layers` overrides it by node name.

    A layer that fits one crossbar stays whole unless it is named. Weights take the 2^`bits` conductances in
    `low`..`high` siemens, by `mode` as a "pair" of devices or as a "single" one with a sign; a pair exports as integers
    times a step, a single device as real values, since its levels have no common step.

    `rounds` of `training` each are ADMM with penalties `rho` (crossbars) and `level_rho` (levels); `retraining` follows
    under the mask, then one run of `mapping` for each share of `shares` that is put on its levels. With `noise` the
    runs after the cut see weights times 1 + noise * N(0, 1), drawn anew at each step.
    """

    rows: int = 8
    columns: int = 8
    density: float = 0.25
    layers: Mapping[str, float] = field(default_factory=dict)
    bits: int = 4
    mode: str = "pair"
    low: float = 1 / 3e6
    high: float = 1 / 3e3
    rounds: int = 6
    rho: float = 3e-2
    level_rho: float = 3e-2
    growth: float = 1.3
    shares: tuple[float, ...] = (0.5, 0.8, 1.0)
    noise: float = 0.0
    training: Training = field(default_factory=lambda: Training(epochs=5, learning_rate=2e-3))
    retraining: Training = field(default_factory=lambda: Training(epochs=15, learning_rate=2e-3))
    mapping: Training = field(default_factory=lambda: Training(epochs=5, learning_rate=1e-3))

    def __post_init__(self) -> None:
        require(self.rows >= 1 and self.columns >= 1, self, "rows >= 1 and columns >= 1")
        need_densities(self)
        require(1 <= self.bits <= 8, self, "bits in 1..8")
        require(self.mode in ("pair", "single"), self, "mode 'pair' or 'single'")
        require(0 < self.low < self.high, self, "0 < low < high")
        require(self.rounds >= 0 and min(self.rho, self.level_rho) > 0, self, "rounds >= 0, rho and level_rho > 0")
        require(self.growth >= 1 and self.noise >= 0, self, "growth >= 1 and noise >= 0")
        Settle(self.mapping, self.shares)

    @property
    def devices(self) -> DeviceLevels:
        return DeviceLevels(self.bits, self.mode, self.low, self.high)

    def apply(self, stage: Stage) -> None:
        stage.need_unquantized("crossbars")
        stage.fold()
        layers = self._layers(stage)
        dense, structures = weights(stage.net), {key: self._keep(stage, layer) for key, layer in layers.items()}
        splits = {key: self._splits(keep) for key, keep in structures.items()}
        report = admm(
            stage, splits, Admm(self.training, self.rounds, growth=self.growth, hard=False), label="crossbars"
        )
        mask = self._mask(stage, structures)
        with _noisy(stage, layers, self.noise):
            retrain(stage, mask, self.retraining)
            distances = self._settle(stage, layers)
        if self.mode == "pair":
            stage.quantizers.update(dict.fromkeys(layers, _Steps(self.devices)))
        else:
            stage.settled = self.card.name
        stage.report_mask(mask)
        stage.report(residuals=[dict(r) for r in report.residuals], distances=distances)
        stage.report(**self._costs(stage, layers, dense))

    def _layers(self, stage: Stage) -> dict[str, Layer]:
        """What is pruned; ModelError where a name, a size or a share cannot be used, with what could."""
        names = weight_keys(stage.net.graph)
        unknown = sorted(set(self.layers) - set(names.values()))
        if unknown:
            raise ModelError(f"cannot prune crossbars of layers {unknown}: need some of {sorted(names.values())}")
        layers = {key: layer for key, layer in stage.layers().items() if key not in stage.quantizers}
        structure = Crossbars(self.rows, self.columns)
        if all(structure.grid(layer) == (1, 1) for layer in layers.values()):
            height, width = max((layer.matrix_shape for layer in layers.values()), key=math.prod)
            raise ModelError(
                f"cannot remove crossbars of {self.rows} x {self.columns}: every layer fits one, the largest is {height} x "
                f"{width}; nearest: {min(self.rows, height)} x {max(1, min(self.columns, width - 1))}"
            )
        for key, layer in layers.items():
            self._check(names[key], math.prod(self._free(stage, layer)))
        return layers

    def _free(self, stage: Stage, layer: Layer) -> tuple[int, int]:
        """Counts that can be chosen, down and across: the last layer keeps all filters."""
        down, across = Crossbars(self.rows, self.columns).grid(layer)
        return (1, across) if layer.key == output_layer(stage.net.graph) else (down, across)

    def _check(self, name: str, count: int) -> None:
        density = self.layers.get(name, self.density)
        if round(density * count) < 1 and (count > 1 or name in self.layers):
            raise ModelError(
                f"cannot keep {density:g} of the crossbars of {name!r}: it has {count} to choose from, need at least one; "
                f"nearest: a density of {1 / count:.4g}"
            )

    def _keep(self, stage: Stage, layer: Layer) -> _Keep:
        name = weight_keys(stage.net.graph)[layer.key]
        down, across = self._free(stage, layer)
        density = self.layers.get(name, self.density if down * across > 1 else 1.0)
        structure, outputs = Crossbars(self.rows, self.columns), layer.key == output_layer(stage.net.graph)

        def keep(values: Floats) -> Bools:
            if not outputs:
                return structure.keep(layer, np.square(values), density)
            width = layer.matrix_shape[1]
            columns = min(width, max(1, round(density * across)) * self.columns)
            return structure.keep_shares(layer, np.square(values), 1.0, columns / width)

        return keep

    def _splits(self, keep: _Keep) -> list[Split]:
        def crossbars(values: Floats) -> Floats:
            return values * keep(values)

        def levels(values: Floats) -> Floats:
            return on_support(self._on_levels, keep(values))(values)

        return [Split(crossbars, self.rho, "crossbars"), Split(levels, self.level_rho, "levels")]

    def _on_levels(self, values: Floats) -> Floats:
        return self.devices.project(values).values

    def _mask(self, stage: Stage, structures: Mapping[str, _Keep]) -> Mask:
        before, keep = masks_of(stage.net), {}
        for key, values in weights(stage.net).items():
            if key in structures:
                alive = before.get(key, np.ones(values.shape, dtype=np.bool_))
                keep[key] = structures[key](values * alive)
        return Mask(keep, "crossbar", {"method": "crossbar ADMM", "crossbar": [self.rows, self.columns]})

    def _settle(self, stage: Stage, layers: Mapping[str, Layer]) -> list[float]:
        keep = masks_of(stage.net)
        projections: dict[str, Projection] = {key: on_support(self._on_levels, keep[key]) for key in layers}
        distances = settle(stage, projections, Settle(self.mapping, self.shares), label="device levels")
        return [max(step.values()) for step in distances]

    def _costs(self, stage: Stage, layers: Mapping[str, Layer], dense: Mapping[str, Floats]) -> dict[str, Any]:
        """Crossbars and the ratios to the unpruned network on the same devices."""
        after, size = arrays(stage.net, layers, masked=True), (self.rows, self.columns)
        costs = {}
        for name, values in (("after", after), ("before", dense)):
            keep = {key: values[key] != 0 for key in layers}
            placed = {key: _projected(self.devices, values[key], keep[key]) for key in layers}
            costs[name] = [array_cost(placed[key], layer, size, self.devices) for key, layer in layers.items()]
        count, energy = (
            {k: sum(getattr(c, what) for c in v) for k, v in costs.items()} for what in ("crossbars", "energy")
        )
        return {
            "crossbars": count["after"],
            "crossbars_before": count["before"],
            "layer_crossbars": {key: c.crossbars for key, c in zip(layers, costs["after"], strict=True)},
            "area_ratio": count["before"] / count["after"],
            "power_ratio": energy["before"] / energy["after"],
        }


@dataclass(frozen=True)
class _Steps(Quantizer):
    """The levels of a pair of devices as integers times a step."""

    devices: DeviceLevels

    def _project(self, values: Floats, mask: Bools | None) -> Quantized:
        found = self.devices.project(values, mask)
        return Quantized(
            found.levels, found.scale * (self.devices.high - self.devices.low) / (2**self.devices.bits - 1)
        )


def _projected(devices: DeviceLevels, values: Floats, keep: Bools) -> Quantized:
    """Levels of the kept weights; 0 elsewhere."""
    found = devices.project(values[keep])
    levels = np.zeros(values.shape, dtype=np.int64)
    levels[keep] = found.levels
    return Quantized(levels, found.scale, codebook=found.codebook)


@contextmanager
def _noisy(stage: Stage, keys: Iterable[str], noise: float) -> Iterator[None]:
    """Weights times 1 + noise * N(0, 1) in training, as devices of tolerance `noise` would have them."""
    net, before = stage.net, dict(stage.net.rounding)

    def disturbed(values: Tensor) -> Tensor:
        return values * (1 + noise * torch.randn_like(values)) if net.training else values

    net.rounding = {**before, **dict.fromkeys(keys, disturbed)} if noise else before
    try:
        yield
    finally:
        net.rounding = before
