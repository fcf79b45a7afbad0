"""Load-balanced gather-scatter patterns: every row keeps as many weights as the next (Sun et al., arXiv 2112.10898).

The pattern and its training are the paper's: groups of B weights from B distinct banks, fewer of them as training goes
on, chosen anew each epoch, then frozen. What it means under encryption is the project's: a bank is a lane of slots. The
first layer is gathered by the client (he_runtime.lower.gather) and takes as many steps as its longest row, so balance
turns the longest row into the mean one. A hidden layer is read from slots, where a group of one weight per row and bank
that is a cyclic shift is a generalized diagonal: there whole shifts stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from he_runtime.compile import DEGREES
from he_runtime.errors import ModelError

from ..cores.masked import gradual
from ..cores.session import weights
from ..graph import Graph, weight_keys
from ..masks import Mask
from ..packing.packing import packed_classes, planned_degree
from ..settings import Training, require
from ..stage import Stage
from ..structures import Balanced, Bools, Diagonals, Floats, Layer, Structure, Weights, gather_cycles
from .densities import layer_densities, need_densities, reached_density
from .method import Card, Method, register
from .quadratics import FIT_SAMPLES

__all__ = ["GatherScatter"]


@register(
    Card(
        "gather-scatter",
        "pruning",
        "balanced gather-scatter patterns; hidden layers: cyclic shifts",
        "products and uploaded ciphertexts of a gathered first layer: ceil(row length * rows / slots); hidden layers, in "
        "diagonal packing: one product for each shift left",
        "Sun et al., Load-balanced Gather-scatter Patterns for Sparse Deep Neural Networks, arXiv 2112.10898",
    )
)
@dataclass(frozen=True)
class GatherScatter(Method):
    """GS(`bank`, `per_row`) in the first layer; the share `density` of its weights stays, to whole groups.

    `per_row` = `bank` is the paper's horizontal pattern, 1 its vertical one. With `cyclic`, the share `density` of each
    hidden layer's diagonals stays, those of the packing at ring `degree` (0: of the plan before pruning); where both
    sides of a dense layer are one power of two, that is GS(side, 1) restricted to shifts. Without it hidden layers are
    balanced as the first is, which serves column packing on `bank` workers but saves nothing in slots. `layers`
    overrides the density by node name. Groups fall (cubic) over the part `ramp` of the epochs, projected greedily from
    dense shadow weights before each epoch; the last projection is by `solver`, "exact" or "greedy".
    """

    density: float = 0.2
    layers: Mapping[str, float] = field(default_factory=dict)
    bank: int = 8
    per_row: int = 8
    cyclic: bool = True
    solver: str = "exact"
    ramp: float = 0.5
    degree: int = 0
    training: Training = field(default_factory=lambda: Training(epochs=40, learning_rate=4e-3))

    def __post_init__(self) -> None:
        need_densities(self)
        require(0 <= self.ramp <= 1, self, "ramp in [0, 1]")
        require(self.degree == 0 or self.degree in DEGREES, self, f"degree 0 or one of {DEGREES}")
        self._pattern()

    def apply(self, stage: Stage) -> None:
        stage.need_unfolded("gather-scatter")
        graph = stage.net.graph
        density = layer_densities(graph, self.density, self.layers)
        layers, first = stage.layers(), first_layer(graph)
        structures = self._structures(stage, layers, first)
        for key, structure in structures.items():
            if isinstance(structure, Balanced):
                _need_a_group(structure, layers[key], density[key])

        gathers: list[int] = []

        def choose(share: float) -> Mask:
            chosen = structures if share < 1 else {key: self._final(s) for key, s in structures.items()}
            energy = {key: value**2 for key, value in weights(stage.net).items()}
            keep = {
                key: chosen[key].keep(layer, energy[key], reached_density(density[key], share))
                for key, layer in layers.items()
            }
            gathers[:] = self._gathers(layers[first], keep[first], energy[first])
            return Mask(keep, "gather-scatter", {"bank": self.bank, "per_row": self.per_row, "density": density})

        mask = gradual(stage, choose, self.training, self.ramp, penalty=stage.penalty)
        stage.report_mask(mask)
        longest = int(layers[first].matrix(mask.keep[first]).sum(axis=1).max())
        stage.report(first=first, row_length=longest, gathers=gathers[0], gathers_unstructured=gathers[1])

    def _pattern(self) -> Balanced:
        return Balanced(self.bank, self.per_row, solver=self.solver)

    def _final(self, structure: Structure) -> Structure:
        return self._pattern() if isinstance(structure, Balanced) else structure

    def _structures(self, stage: Stage, layers: Mapping[str, Layer], first: str) -> dict[str, Structure]:
        """Array name -> what may be zero in it together, with the quick solver."""
        balanced = replace(self._pattern(), solver="greedy")
        if not self.cyclic or len(layers) == 1:
            return dict.fromkeys(layers, balanced)
        degree = self.degree or planned_degree(stage.graph(), stage.input_spec, stage.x[:FIT_SAMPLES])
        shifts = Diagonals(packed_classes(stage.net.graph, degree))
        return {key: balanced if key == first else shifts for key in layers}

    def _gathers(self, layer: Layer, keep: Bools, energy: Floats) -> list[int]:
        """Gathers that a mask takes, and those of as many single weights: of the most energy in the whole layer."""
        single = Weights().keep(layer, energy, float(keep.mean()))
        return [gather_cycles(layer.matrix(m), self.bank, self.per_row) for m in (keep, single)]


def first_layer(graph: Graph) -> str:
    """The weight array of the first linear layer; ModelError where there is none."""
    keys = weight_keys(graph)
    if not keys:
        raise ModelError("cannot prune: the network has no linear layer, need at least one")
    return next(iter(keys))


def _need_a_group(structure: Balanced, layer: Layer, density: float) -> None:
    """ModelError where the density rounds to no group, or the layer is narrower than the banks."""
    structure.groups(layer, density)
    columns = layer.matrix_shape[1]
    if not np.rint(density * columns / structure.per_row):
        raise ModelError(
            f"cannot balance {layer.key!r} at density {density:g}: need at least {structure.per_row} of {columns} "
            f"weights in each row; try a density of {structure.per_row / columns:.4g} or fewer weights per row and group"
        )
