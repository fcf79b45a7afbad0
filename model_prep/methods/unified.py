"""One penalty for every structure, switched off layer by layer where the target is met.

Zhang et al., arXiv 2004.05531: the paper's is the penalty over structures, reweighted dynamically, with its strength as the
single hyper-parameter, and the integration with quantization. How it is "bounded by the designated constraint" could not
be read there; the project's own reading is a cap of groups per layer: a layer within its cap is no longer penalised, and
the end is a projection onto exactly that many groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from he_runtime.compile import DEGREES
from he_runtime.errors import ModelError

from ..cores.admm import Admm, AdmmReport, admm, on_support
from ..cores.masked import retrain
from ..cores.reweighted import Reweighted, reweighted
from ..cores.session import Floats, Projection, masks_of, need, weights
from ..graph import weight_keys
from ..masks import Bools, Mask
from ..packing.packing import packed_classes, planned_degree
from ..quantizers import AlphaQ
from ..settings import Training, require
from ..stage import Stage
from ..structures import (
    Channels,
    Columns,
    Diagonals,
    Grouped,
    Ints,
    Kernels,
    Layer,
    Rows,
    Tiles,
    Weights,
    group_energy,
    keep_strongest,
)
from .densities import need_densities
from .method import Card, Method, register
from .outputs import output_layer
from .quadratics import FIT_SAMPLES

__all__ = ["STRUCTURES", "Unified"]

STRUCTURES = ("weight", "row", "column", "kernel", "channel", "block", "diagonal")


@register(
    Card(
        "unified",
        "pruning",
        "weights, rows, columns, kernels, channels, blocks or diagonals",
        "in column packing: products, one per weight left and output position; with rows also activations and what reads "
        "them; with diagonals products in diagonal packing",
        "Zhang et al., A Unified DNN Weight Compression Framework Using Reweighted Optimization Methods, arXiv 2004.05531",
    )
)
@dataclass(frozen=True)
class Unified(Method):
    """`density` is the share of each layer's groups that stays; `layers` overrides it and `caps` says counts, by node name.

    Groups are those of `structure`, for "block" tiles of `block` = (rows, columns) of the matrix view, for "diagonal" sets
    of diagonals of the packing at ring degree `degree` (0: that of the plan before pruning). The last layer keeps its
    rows, which are the outputs, and a layer that is one group stays whole unless it is named.

    `rounds` of `training` each reweight; without `dynamic` all their epochs are one run of plain group lasso, for
    comparison. `strength` is what the penalty weighs while every group of the network lives: each counts strength / groups
    (the project's own, so that one value serves all structures). `retraining` follows under the mask. With `bits` the survivors
    then become integers on the folded network by ADMM (`level_rounds` of `level_training`), zeros staying zeros.
    """

    structure: str = "weight"
    density: float = 0.25
    layers: Mapping[str, float] = field(default_factory=dict)
    caps: Mapping[str, int] = field(default_factory=dict)
    block: tuple[int, ...] = (4, 4)
    degree: int = 0
    strength: float = 2.0
    dynamic: bool = True
    epsilon: float = 1e-3
    power: int = 1
    rounds: int = 4
    bits: int = 0
    level_rounds: int = 6
    level_rho: float = 5e-2
    training: Training = field(default_factory=lambda: Training(epochs=8, learning_rate=3e-3))
    retraining: Training = field(default_factory=lambda: Training(epochs=20, learning_rate=3e-3))
    level_training: Training = field(default_factory=lambda: Training(epochs=3, learning_rate=5e-4))

    _PARTITIONS: ClassVar[Mapping[str, Callable[[], Grouped]]] = {
        "weight": Weights,
        "row": Rows,
        "column": Columns,
        "kernel": Kernels,
        "channel": Channels,
    }

    def __post_init__(self) -> None:
        require(self.structure in STRUCTURES, self, f"structure in {STRUCTURES}")
        need_densities(self)
        require(len(self.block) == 2 and min(self.block) >= 1, self, "block = [rows, columns] of at least 1")
        require(self.degree == 0 or self.degree in DEGREES, self, f"degree 0 or one of {DEGREES}")
        require(self.bits == 0 or 2 <= self.bits <= 12, self, "bits 0 or in 2..12")
        require(self.strength > 0 and self.epsilon > 0, self, "strength > 0 and epsilon > 0")
        require(self.rounds >= 1 and self.power in (1, 2), self, "rounds >= 1 and power 1 or 2")
        require(self.level_rounds >= 1 and self.level_rho > 0, self, "level_rounds >= 1 and level_rho > 0")

    def apply(self, stage: Stage) -> None:
        stage.need_unfolded("unified")
        labels = self._labels(stage)
        caps = self._caps(stage, labels)
        self._mask(stage, labels, caps)  # what cannot be met is refused before the training
        report = reweighted(stage, labels, self._reweighting(labels, caps), penalty=stage.penalty, label="unified")
        mask = self._mask(stage, labels, caps)
        retrain(stage, mask, self.retraining, penalty=stage.penalty)
        stage.report_mask(mask)
        stage.report(
            groups={key: int(value.max()) + 1 for key, value in labels.items()},
            caps=caps,
            rounds=[{"strengths": dict(r.strengths), "living": dict(r.living)} for r in report.rounds],
            stopped=report.stopped,
        )
        if self.bits:
            stage.report(bits=self.bits, residuals=list(self._to_levels(stage).worst))

    def _reweighting(self, labels: Mapping[str, Ints], caps: Mapping[str, int]) -> Reweighted:
        strength = self.strength / sum(int(value.max()) + 1 for value in labels.values())
        if self.dynamic:
            return Reweighted(self.training, self.rounds, strength, epsilon=self.epsilon, power=self.power, caps=caps)
        whole = replace(self.training, epochs=self.rounds * self.training.epochs)
        return Reweighted(whole, 1, strength, epsilon=self.epsilon, power=self.power, caps=caps, start="ones")

    def _labels(self, stage: Stage) -> dict[str, Ints]:
        """Array -> group of each weight, for the layers that are pruned."""
        layers, structure = stage.layers(), self._partition(stage)
        if self.structure == "block":
            _check_block(self.block, layers)
        if self.structure == "row":
            outputs = output_layer(stage.net.graph)
            layers = {key: layer for key, layer in layers.items() if key != outputs}
        if not layers:
            raise ModelError(
                f"cannot prune {self.structure}s: got none that could go, as all belong to the network's output; try a "
                "network with a hidden layer, or another structure"
            )
        return {key: structure.labels(layer).copy() for key, layer in layers.items()}

    def _partition(self, stage: Stage) -> Grouped:
        if self.structure == "block":
            return Tiles(*self.block)
        if self.structure == "diagonal":
            degree = self.degree or planned_degree(stage.graph(), stage.input_spec, stage.x[:FIT_SAMPLES])
            return Diagonals(packed_classes(stage.net.graph, degree))
        return self._PARTITIONS[self.structure]()

    def _caps(self, stage: Stage, labels: Mapping[str, Ints]) -> dict[str, int]:
        """Array -> groups that stay; ModelError with the nearest count or share that can be met."""
        nodes = weight_keys(stage.net.graph)
        names = {nodes[key]: key for key in labels}
        unknown = sorted({*self.layers, *self.caps} - set(names))
        if unknown:
            raise ModelError(f"cannot prune {self.structure}s of layers {unknown}: need some of {sorted(names)}")
        found = {}
        for name, key in names.items():
            groups = int(labels[key].max()) + 1
            if name in self.caps:
                found[key] = _checked_cap(name, self.caps[name], groups, self.structure)
            elif name in self.layers or groups > 1:
                found[key] = _checked_share(name, self.layers.get(name, self.density), groups, self.structure)
            else:
                found[key] = groups
        return found

    def _mask(self, stage: Stage, labels: Mapping[str, Ints], caps: Mapping[str, int]) -> Mask:
        """Exactly the capped number of groups, those of largest norm."""
        before, values = masks_of(stage.net), weights(stage.net)
        keep: dict[str, Bools] = {}
        for key, groups in labels.items():
            alive = before.get(key, np.ones(groups.shape, dtype=np.bool_))
            energy = np.square(values[key]) * alive
            if key == output_layer(stage.net.graph):
                keep[key] = _keep_outputs(key, groups, energy, caps[key])
            else:
                keep[key] = keep_strongest(groups, energy, caps[key])
        return Mask(keep, self.structure, {"method": "unified reweighting", "caps": dict(caps)})

    def _to_levels(self, stage: Stage) -> AdmmReport:
        """Survivors of every layer onto alpha * {-q..q} without zero, on the folded network (section 11, step 4)."""
        stage.fold()
        quantizer, masks = AlphaQ(self.bits), masks_of(stage.net)
        keys = [key for key in stage.net.weight_keys() if key not in stage.quantizers]

        def alive(values: Floats) -> Floats:
            return quantizer.project(values, np.ones(values.shape, dtype=np.bool_)).values

        def every(values: Floats) -> Floats:
            return quantizer.project(values).values

        projections: dict[str, Projection] = {
            key: every if key not in masks or masks[key].all() else on_support(alive, masks[key]) for key in keys
        }
        settings = Admm(self.level_training, self.level_rounds, self.level_rho)
        report = admm(stage, projections, settings, label="unified levels")
        stage.quantizers.update(dict.fromkeys(keys, quantizer))
        return report


def _check_block(block: tuple[int, ...], layers: Mapping[str, Layer]) -> None:
    """ModelError where a block is larger than a layer."""
    height, width = (min(layer.matrix_shape[i] for layer in layers.values()) for i in range(2))
    for key, layer in layers.items():
        if block[0] > layer.matrix_shape[0] or block[1] > layer.matrix_shape[1]:
            raise ModelError(
                f"cannot prune {key!r} by blocks of {block[0]} x {block[1]}: need blocks within its matrix of "
                f"{layer.matrix_shape[0]} x {layer.matrix_shape[1]}; nearest for all layers: "
                f"{min(block[0], height)} x {min(block[1], width)}"
            )


def _checked_cap(name: str, cap: int, groups: int, structure: str) -> int:
    need(
        1 <= cap <= groups,
        f"a cap of {structure}s of {name!r}",
        f"{cap}",
        f"1..{groups}; try {min(max(cap, 1), groups)}",
    )
    return cap


def _checked_share(name: str, share: float, groups: int, structure: str) -> int:
    """round(share * groups)."""
    if round(share * groups) < 1:
        raise ModelError(
            f"cannot prune {name!r} to {share:g} of {groups} {structure}s: need at least one to stay; nearest: a density "
            f"of {1 / groups:.4g}"
        )
    return round(share * groups)


def _keep_outputs(key: str, groups: Ints, energy: Floats, cap: int) -> Bools:
    """The `cap` strongest groups, among them the strongest of each row, so that every output depends on the input.

    ModelError where these alone are more, with their number.
    """
    order = np.argsort(-group_energy(groups, energy), kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    needed = np.unique(rank[groups].reshape(len(groups), -1).min(axis=1))
    if len(needed) > cap:
        raise ModelError(
            f"cannot prune {key!r} to {cap} of {len(order)} groups: an output of the network would depend on no input; "
            f"nearest: {len(needed)} groups"
        )
    first = np.concatenate([needed, np.setdiff1d(np.arange(len(order)), needed)])[:cap]
    return np.asarray(np.isin(rank[groups], first), dtype=np.bool_)
