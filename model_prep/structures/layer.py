"""What a structure needs to know of a layer, and its weights seen as one matrix.

The matrix view of a dense layer is its weight (m, n); that of a convolution is (filters, channels x taps). A *row* is a
filter or neuron, a *column* one (input channel, tap) for all filters, a *kernel* one (filter, input channel) slice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel

from ..graph import LINEAR_OPS, Graph, weight_keys

__all__ = ["Bools", "Floats", "Ints", "Layer", "layers_of"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True)
class Layer:
    """One prunable weight array.

    `key` names the array, `op` is "dense" (shape (out, in)) or "conv2d" (shape (out, in/groups, kh, kw)), `positions`
    counts the output positions that each weight serves over all layers that use the array (1 for a dense layer), and
    `groups` is the number of groups of the convolution. Raises ModelError where the shape is not one of `op`.
    """

    key: str
    op: str
    shape: tuple[int, ...]
    positions: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        axes = {"dense": 2, "conv2d": 4}.get(self.op)
        if axes is None:
            raise ModelError(f"cannot prune {self.key!r}: got op {self.op!r}, need one of {sorted(LINEAR_OPS)}")
        if len(self.shape) != axes or min(self.shape) < 1:
            raise ModelError(f"cannot prune {self.key!r}: got shape {self.shape}, need {axes} axes of at least 1")
        if self.groups < 1 or self.shape[0] % self.groups or (self.op == "dense" and self.groups != 1):
            raise ModelError(
                f"cannot prune {self.key!r}: got {self.groups} groups for shape {self.shape}; need a divisor of the "
                "filters, and 1 for a dense layer"
            )

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(filters, weights per filter)."""
        return self.shape[0], self.size // self.shape[0]

    @property
    def kernel(self) -> tuple[int, int]:
        """(kh, kw); (1, 1) for a dense layer, whose weights are its kernels."""
        return (self.shape[2], self.shape[3]) if self.op == "conv2d" else (1, 1)

    def matrix(self, values: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
        """`values` (the layer's shape) as (filters, weights per filter); ModelError on another shape."""
        if values.shape != self.shape:
            raise ModelError(
                f"cannot use values for {self.key!r}: got shape {values.shape}, need the layer's {self.shape}"
            )
        return values.reshape(self.matrix_shape)

    def input_channels(self) -> Ints:
        """(out, in/groups): which input channel each kernel reads. Filters of one group read the group's channels."""
        filters, width = self.shape[:2]
        group = np.arange(filters, dtype=np.int64) // (filters // self.groups)
        return np.asarray(group[:, None] * width + np.arange(width), dtype=np.int64)


def layers_of(model: Graph | CompressedModel) -> dict[str, Layer]:
    """Every prunable array by name, in evaluation order; an array of several layers has the op of the first."""
    nodes = {node.name: node for node in model.nodes}
    positions: dict[str, int] = {}
    for node in model.nodes:
        if node.op in LINEAR_OPS:
            key = node.arrays["weight"]
            positions[key] = positions.get(key, 0) + math.prod(node.shape[1:])
    return {
        key: Layer(key, nodes[name].op, _shape(model.arrays[key]), positions[key], _groups(nodes[name].attrs))
        for key, name in weight_keys(model).items()
    }


def _shape(values: npt.NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(n) for n in values.shape)


def _groups(attrs: Any) -> int:
    return int(attrs.get("groups", 1))
