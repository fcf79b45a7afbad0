"""Structures whose groups partition the weights: the projection keeps the groups with most energy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from he_runtime.errors import ModelError

from .layer import Bools, Floats, Ints, Layer
from .structure import checked_energy, keep_strongest, kept_count

__all__ = ["BlockColumns", "BlockRows", "Channels", "Columns", "Diagonals", "Kernels", "Rows", "Tiles", "Weights"]


class _Partition(ABC):
    """The projection of every partition: exact, since groups do not interact."""

    @abstractmethod
    def labels(self, layer: Layer) -> Ints: ...

    def keep(self, layer: Layer, energy: Floats, density: float) -> Bools:
        values, labels = checked_energy(layer, energy, density), self.labels(layer)
        return keep_strongest(labels, values, kept_count(density, int(labels.max()) + 1))


@dataclass(frozen=True)
class Weights(_Partition):
    """Single weights: unstructured sparsity, which column packing (BATCH) turns into fewer products one to one."""

    name: str = field(default="weights", init=False)

    def labels(self, layer: Layer) -> Ints:
        return np.arange(layer.size, dtype=np.int64).reshape(layer.shape)


@dataclass(frozen=True)
class Rows(_Partition):
    """Filters or output neurons: an empty row removes an output, its activation and all that reads it."""

    name: str = field(default="rows", init=False)

    def labels(self, layer: Layer) -> Ints:
        rows = np.arange(layer.shape[0], dtype=np.int64)
        return _broadcast(rows.reshape(-1, *(1,) * (len(layer.shape) - 1)), layer)


@dataclass(frozen=True)
class Columns(_Partition):
    """(input channel, tap) for all filters that read the channel: an empty one saves a rotation in channel packing."""

    name: str = field(default="columns", init=False)

    def labels(self, layer: Layer) -> Ints:
        height, width = layer.kernel
        taps = np.arange(height * width, dtype=np.int64).reshape(1, 1, height, width)
        return (layer.input_channels()[:, :, None, None] * (height * width) + taps).reshape(layer.shape)


@dataclass(frozen=True)
class Kernels(_Partition):
    """(filter, input channel) slices: connectivity pruning. A dense layer's kernels are its weights."""

    name: str = field(default="kernels", init=False)

    def labels(self, layer: Layer) -> Ints:
        kernels = np.arange(layer.shape[0] * layer.shape[1], dtype=np.int64)
        return _broadcast(kernels.reshape(*layer.shape[:2], *(1,) * (len(layer.shape) - 2)), layer)


@dataclass(frozen=True)
class Channels(_Partition):
    """All columns of one input channel: an empty one drops an input ciphertext in channel packing."""

    name: str = field(default="channels", init=False)

    def labels(self, layer: Layer) -> Ints:
        channels = layer.input_channels()
        return _broadcast(channels.reshape(*channels.shape, *(1,) * (len(layer.shape) - 2)), layer)


@dataclass(frozen=True)
class _Blocks(_Partition):
    """Blocks of `rows` x `columns` of the matrix view, at most the whole; where a size does not divide, the last are smaller."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise ModelError(f"cannot cut blocks of {self.rows} x {self.columns}: need at least 1 x 1")

    def places(self, layer: Layer) -> tuple[Ints, Ints]:
        """(height,), (width,): the block of each row and of each column of the matrix view."""
        height, width = layer.matrix_shape  # NumPy divides by no integer beyond 64 bits, so a larger block is the whole
        rows, columns = min(self.rows, height), min(self.columns, width)
        return np.arange(height, dtype=np.int64) // rows, np.arange(width, dtype=np.int64) // columns

    def blocks(self, layer: Layer) -> Ints:
        """The block of each weight, row by row, in the matrix view."""
        down, across = self.places(layer)
        return np.asarray(down[:, None] * (across[-1] + 1) + across, dtype=np.int64)


@dataclass(frozen=True)
class Tiles(_Blocks):
    """Whole blocks: an empty tile is a plaintext operand less in tile packing (Li et al., 2020: `whole_block`)."""

    name: str = field(default="tiles", init=False)

    def labels(self, layer: Layer) -> Ints:
        return self.blocks(layer).reshape(layer.shape)


@dataclass(frozen=True)
class BlockRows(_Blocks):
    """Pieces of rows inside a block (Li et al., Findings of EMNLP 2020: `block_filter`)."""

    name: str = field(default="block-rows", init=False)

    def labels(self, layer: Layer) -> Ints:
        down, across = self.places(layer)
        rows = np.arange(len(down), dtype=np.int64)[:, None] * (across[-1] + 1)
        return np.asarray(rows + across, dtype=np.int64).reshape(layer.shape)


@dataclass(frozen=True)
class BlockColumns(_Blocks):
    """Pieces of columns inside a block (Li et al., Findings of EMNLP 2020: `block_column`)."""

    name: str = field(default="block-columns", init=False)

    def labels(self, layer: Layer) -> Ints:
        down, across = self.places(layer)
        columns = np.arange(len(across), dtype=np.int64)
        return np.asarray(down[:, None] * len(across) + columns, dtype=np.int64).reshape(layer.shape)


@dataclass(frozen=True)
class Diagonals(_Partition):
    """Sets of generalized diagonals: an empty one is a plaintext operand less in slot packing.

    `classes[key]` numbers each weight's set in the shape of the layer (`packing.packed_classes`).
    """

    classes: Mapping[str, Ints]
    name: str = field(default="diagonals", init=False)

    def labels(self, layer: Layer) -> Ints:
        classes = self.classes.get(layer.key)
        if classes is None or classes.shape != layer.shape:
            got = "no classes" if classes is None else f"classes of shape {classes.shape}"
            raise ModelError(
                f"cannot prune diagonals of {layer.key!r}: got {got}, need shape {layer.shape}; try packed_classes"
            )
        return np.asarray(np.unique(classes, return_inverse=True)[1], dtype=np.int64).reshape(layer.shape)


def _broadcast(labels: Ints, layer: Layer) -> Ints:
    return np.ascontiguousarray(np.broadcast_to(labels, layer.shape))
