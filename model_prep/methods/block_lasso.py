"""Reweighted block pruning: pieces of rows or columns inside blocks, or whole blocks (Li et al., arXiv 2009.08065).

Training, percentile cut and masked retraining are the paper's, and so is the guard that no row of the matrix loses all of
its weights; the guard's exact form is the project's: it decides within the count rather than adding to it. The paper is
about transformers on a phone; here the same groups are pruned in dense layers and convolutions.

No packing of the runtime has a plaintext per tile, so an empty tile saves nothing in slots. What falls is the count in
column packing, by every zero and output position; the tiles left are reported as the structure's own count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from he_runtime.errors import ModelError

from ..cores.masked import retrain
from ..cores.reweighted import Reweighted, reweighted
from ..cores.session import weights
from ..masks import Bools, Mask
from ..settings import Training, require
from ..stage import Stage
from ..structures import (
    BlockColumns,
    BlockRows,
    Floats,
    Grouped,
    Ints,
    Layer,
    Tiles,
    crossbar_count,
    group_energy,
    kept_count,
    occupied_crossbars,
)
from .densities import layer_densities, need_densities
from .method import Card, Method, register

__all__ = ["GROUPINGS", "ReweightedBlocks", "keep_pieces"]

GROUPINGS: Mapping[str, type[BlockRows] | type[BlockColumns] | type[Tiles]] = {
    "rows": BlockRows,
    "columns": BlockColumns,
    "whole": Tiles,
}


@register(
    Card(
        "block-lasso",
        "pruning",
        "pieces of rows or columns inside blocks, or whole blocks",
        "products in column packing: one for each weight left and output position (tiles left are reported: no packing "
        "here has a product per tile)",
        "Li et al., Efficient Transformer-based Large Scale Language Representations using Hardware-friendly Block "
        "Structured Pruning, Findings of EMNLP 2020, arXiv 2009.08065",
    )
)
@dataclass(frozen=True)
class ReweightedBlocks(Method):
    """The share `density` of each layer's groups stays, by norm; `layers` overrides it by node name.

    `grouping` cuts blocks of `rows` x `columns` of the matrix view into pieces of "rows" or "columns", or takes them
    "whole"; edge blocks are smaller. `rounds` of `training` push group norms apart with `strength` (refreshed before
    each round), the cut is per layer, `retraining` follows under the mask. With `protect`, the strongest group of every
    row of the matrix stays, within the count.
    """

    density: float = 0.3
    layers: Mapping[str, float] = field(default_factory=dict)
    grouping: str = "rows"
    rows: int = 8
    columns: int = 8
    strength: float = 3e-4
    epsilon: float = 1e-3
    rounds: int = 4
    protect: bool = True
    training: Training = field(default_factory=lambda: Training(epochs=8, learning_rate=3e-3))
    retraining: Training = field(default_factory=lambda: Training(epochs=20, learning_rate=3e-3))

    def __post_init__(self) -> None:
        need_densities(self)
        require(self.grouping in GROUPINGS, self, f"grouping in {sorted(GROUPINGS)}")
        require(self.rows >= 1 and self.columns >= 1, self, "blocks of at least 1 x 1: rows and columns >= 1")
        self._settings()

    def apply(self, stage: Stage) -> None:
        stage.need_unfolded("block-lasso")
        density = layer_densities(stage.net.graph, self.density, self.layers)
        layers, structure = stage.layers(), GROUPINGS[self.grouping](self.rows, self.columns)
        for key, layer in layers.items():
            _need_groups(structure, layer, density[key], self.protect)
        labels = {key: structure.labels(layer) for key, layer in layers.items()}
        report = reweighted(stage, labels, self._settings(), penalty=stage.penalty)
        values = weights(stage.net)
        keep = {
            key: keep_pieces(structure, layer, values[key] ** 2, density[key], self.protect)
            for key, layer in layers.items()
        }
        mask = Mask(keep, structure.name, {"rows": self.rows, "columns": self.columns, "density": density})
        stage.report_mask(mask)
        stage.report(
            living=[round_.living for round_ in report.rounds], **tile_counts(layers, keep, self.rows, self.columns)
        )
        retrain(stage, mask, self.retraining, penalty=stage.penalty)

    def _settings(self) -> Reweighted:
        return Reweighted(self.training, rounds=self.rounds, strength=self.strength, epsilon=self.epsilon)


def keep_pieces(structure: Grouped, layer: Layer, energy: Floats, density: float, protect: bool) -> Bools:
    """The max(1, round(density * groups)) groups of most energy; with `protect`, first the best of each band of rows.

    A band is the rows that a group spans: one row, or the rows of a block. Ties fall to the lower group.
    """
    labels = structure.labels(layer)
    sums = group_energy(labels, energy)
    count, order = kept_count(density, len(sums)), np.argsort(-sums, kind="stable")
    if protect:
        first = np.unique(_bands(layer, labels)[order], return_index=True)[1]
        order = np.concatenate([order[np.sort(first)], np.delete(order, first)])
    chosen = np.zeros(len(sums), dtype=np.bool_)
    chosen[order[:count]] = True
    return np.asarray(chosen[labels], dtype=np.bool_)


def tile_counts(layers: Mapping[str, Layer], keep: Mapping[str, Bools], rows: int, columns: int) -> dict[str, int]:
    """Tiles of `rows` x `columns` in all layers, and those that hold a non-zero."""
    shapes = [layer.matrix_shape for layer in layers.values()]
    left = [occupied_crossbars(layer.matrix(keep[key]), rows, columns) for key, layer in layers.items()]
    return {"tiles": sum(left), "tiles_dense": sum(crossbar_count(*shape, rows, columns) for shape in shapes)}


def _bands(layer: Layer, labels: Ints) -> Ints:
    """(groups,): the first row of the matrix view that each group has a weight in."""
    matrix = layer.matrix(labels)
    first = np.full(int(matrix.max()) + 1, len(matrix), dtype=np.int64)
    np.minimum.at(first, matrix, np.arange(len(matrix))[:, None])
    return first


def _need_groups(structure: Grouped, layer: Layer, density: float, protect: bool) -> None:
    """ModelError where the density leaves fewer groups than rows need."""
    labels = structure.labels(layer)
    groups = int(labels.max()) + 1
    least = len(np.unique(_bands(layer, labels))) if protect else 1
    if round(density * groups) < least:
        raise ModelError(
            f"cannot prune {layer.key!r} to density {density:g}: it has {groups} groups, need at least {least}, one for "
            f"{'each row or block of rows' if protect else 'the layer'}; try a density of {least / groups:.4g}"
        )
