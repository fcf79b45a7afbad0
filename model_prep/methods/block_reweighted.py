"""Whole rows and columns inside each block, whatever the other blocks lose (BLK-REW; Ma et al., arXiv 2001.08357).

The structure, the penalty (sum of P * ||.||^2 over the row and column pieces of all blocks, P = 1/(||.||^2 + epsilon)
refreshed before each round) and the order (reweight, cut, retrain) are the paper's. The cut is the project's: instead of a
threshold per piece it keeps a given number of weights per layer, by the projection of `BlockRowsAndColumns`, so that the
target is met.

No packing of the runtime has a plaintext per block. What falls is the count in column packing, by every zero and output
position; blocks left are reported as the structure's own count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from he_runtime.errors import ModelError

from ..cores.masked import retrain
from ..cores.reweighted import Reweighted, reweighted
from ..cores.session import weights
from ..masks import Mask
from ..settings import Training, require
from ..stage import Stage
from ..structures import BlockRowsAndColumns, Layer, crossbar_count, occupied_crossbars
from .densities import layer_densities, need_densities
from .method import Card, Method, register

__all__ = ["BlockRowsColumns"]


@register(
    Card(
        "block-reweighted",
        "pruning",
        "rows and columns inside each block",
        "products in column packing: one for each weight left and output position (blocks left are reported: no packing "
        "here has a product per block)",
        "Ma et al., A Unified DNN Weight Pruning Framework Using Reweighted Method (BLK-REW), arXiv 2001.08357",
    )
)
@dataclass(frozen=True)
class BlockRowsColumns(Method):
    """At most the share `density` of each layer's weights stays, to whole pieces; `layers` overrides it by node name.

    Blocks are `rows` x `columns` in dense layers, and `filters` x all taps of `channels` input channels in convolutions;
    edge blocks are smaller, and a block as large as the matrix prunes its plain rows and columns. `rounds` of
    `training` with `strength`, the cut, then `retraining` under the mask.
    """

    density: float = 0.2
    layers: Mapping[str, float] = field(default_factory=dict)
    rows: int = 16
    columns: int = 16
    filters: int = 8
    channels: int = 4
    strength: float = 1e-3
    epsilon: float = 1e-3
    rounds: int = 4
    training: Training = field(default_factory=lambda: Training(epochs=8, learning_rate=3e-3))
    retraining: Training = field(default_factory=lambda: Training(epochs=20, learning_rate=3e-3))

    def __post_init__(self) -> None:
        need_densities(self)
        sizes = (self.rows, self.columns, self.filters, self.channels)
        require(min(sizes) >= 1, self, "rows, columns, filters and channels of at least 1")
        self._settings()

    def apply(self, stage: Stage) -> None:
        stage.need_unfolded("block-reweighted")
        density = layer_densities(stage.net.graph, self.density, self.layers)
        layers = stage.layers()
        for key, layer in layers.items():
            _need_weights(layer, density[key])
        structures = {key: self.structure(layer) for key, layer in layers.items()}
        labels = {key: [g.labels(layers[key]) for g in s.groupings] for key, s in structures.items()}
        report = reweighted(stage, labels, self._settings(), penalty=stage.penalty)
        values = weights(stage.net)
        keep = {key: s.keep(layers[key], values[key] ** 2, density[key]) for key, s in structures.items()}
        sizes = {key: [s.rows, s.columns] for key, s in structures.items()}
        mask = Mask(keep, "block-rows-and-columns", {"blocks": sizes, "density": density})
        stage.report_mask(mask)
        left = [occupied_crossbars(layers[key].matrix(keep[key]), *size) for key, size in sizes.items()]
        dense = [crossbar_count(*layers[key].matrix_shape, *size) for key, size in sizes.items()]
        stage.report(living=[r.living for r in report.rounds], tiles=sum(left), tiles_dense=sum(dense))
        retrain(stage, mask, self.retraining, penalty=stage.penalty)

    def structure(self, layer: Layer) -> BlockRowsAndColumns:
        """The blocks of a layer, none larger than its matrix view."""
        taps, (height, width) = layer.kernel[0] * layer.kernel[1], layer.matrix_shape
        dense = layer.op == "dense"
        rows, columns = (self.rows, self.columns) if dense else (self.filters, self.channels * taps)
        return BlockRowsAndColumns(min(rows, height), min(columns, width))

    def _settings(self) -> Reweighted:
        return Reweighted(self.training, rounds=self.rounds, strength=self.strength, epsilon=self.epsilon, power=2)


def _need_weights(layer: Layer, density: float) -> None:
    """ModelError where the density leaves no weight."""
    if round(density * layer.size) < 1:
        raise ModelError(
            f"cannot prune {layer.key!r} to density {density:g}: it has {layer.size} weights, need at least one left; "
            f"try a density of {1 / layer.size:.4g}"
        )
