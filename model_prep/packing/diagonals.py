"""Diagonal-class pruning: the unit of saving under slot packing is a whole generalized diagonal, never one weight.

A linear layer is a matrix from input slots to output slots. With the input replicated with its period, the entries with
equal (column - row) mod M share one plaintext operand, M being the smaller of the two padded sizes (Halevi, Shoup,
CRYPTO 2014). A class that is zero throughout is an operand that the plan drops.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from he_runtime.model import CompressedModel, Node

from ..masks import Bools, Mask

__all__ = [
    "Ints",
    "Positions",
    "contiguous_classes",
    "contiguous_positions",
    "diagonal_classes",
    "diagonal_mask",
    "set_ids",
]

Ints = npt.NDArray[np.int64]
Positions = tuple[Ints, Ints]  # slots of the output elements and of the input elements, in the tensors' shapes


def contiguous_positions(output_shape: tuple[int, ...], input_shape: tuple[int, ...]) -> Positions:
    """Row-major slots without gaps: the packing of last resort, and exact for dense layers."""
    return tuple(np.arange(int(np.prod(s))).reshape(s) for s in (output_shape, input_shape))  # type: ignore[return-value]


def contiguous_classes(model: CompressedModel, name: str) -> Ints:
    """The class of each weight of a layer, were its tensors packed contiguously."""
    node = model.node(name)
    positions = contiguous_positions(node.shape, model.shape_of(node.inputs[0]))
    return diagonal_classes(node, model.arrays[node.arrays["weight"]].shape, positions)


def diagonal_classes(node: Node, shape: tuple[int, ...], positions: Positions, modulus: int | None = None) -> Ints:
    """The class of each weight, in the weight's `shape`: weights of one class lie on the same set of diagonals.

    `positions` holds the slot of every output element and of every input element. A convolution's weight occurs once
    per output position; where these fall on one diagonal the class is that diagonal, otherwise it is their set.
    """
    rows, columns = positions
    modulus = modulus or min(_padded(rows), _padded(columns))
    if node.op == "dense":
        return np.asarray((columns.ravel()[None, :] - rows.ravel()[:, None]) % modulus, dtype=np.int64)
    return _conv_classes(node, shape, rows, columns, modulus)


def _conv_classes(node: Node, shape: tuple[int, ...], rows: Ints, columns: Ints, modulus: int) -> Ints:
    (stride_y, stride_x), (pad_y, pad_x) = node.attrs["stride"], node.attrs["padding"]
    dilation_y, dilation_x = node.attrs["dilation"]
    out_channels, width, kernel_y, kernel_x = shape
    groups = int(node.attrs["groups"])
    _, height_in, width_in = columns.shape
    channel = np.arange(out_channels)[:, None] * groups // out_channels * width + np.arange(width)  # (out, in/groups)
    y, x = np.meshgrid(np.arange(rows.shape[1]), np.arange(rows.shape[2]), indexing="ij")
    occurrences = np.full((*shape, y.size), -1, dtype=np.int64)
    for dy in range(kernel_y):
        for dx in range(kernel_x):
            iy, ix = y * stride_y - pad_y + dy * dilation_y, x * stride_x - pad_x + dx * dilation_x
            inside = (iy >= 0) & (iy < height_in) & (ix >= 0) & (ix < width_in)
            if inside.any():
                source = columns[:, iy[inside], ix[inside]][channel]  # (out, in/groups, occurrences)
                diagonal = (source - rows[:, None, y[inside], x[inside]]) % modulus
                occurrences[:, :, dy, dx, : inside.sum()] = diagonal
    return set_ids(occurrences.reshape(-1, y.size)).reshape(shape)


def set_ids(occurrences: Ints) -> Ints:
    """(weights, positions) -> one number per distinct set of values in a row; -1 fills places that do not exist."""
    ordered = np.sort(occurrences, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
    _, ids = np.unique(np.sort(ordered, axis=1), axis=0, return_inverse=True)
    return np.asarray(ids, dtype=np.int64).ravel()


def _padded(positions: Ints) -> int:
    return 1 << int(positions.max()).bit_length()


def diagonal_mask(
    weights: Mapping[str, npt.NDArray[Any]], classes: Mapping[str, Ints], density: Mapping[str, float]
) -> Mask:
    """Keep the share `density[array]` of each layer's classes (at least one), those with the largest energy.

    `classes[array]` numbers each weight's diagonal (`packing.packed_classes`, or `diagonal_classes` for given slots).
    The energy of a class is the sum of its squared weights. Ties fall to the lower class number.
    """
    keep = {key: _strongest_classes(classes[key], weight**2, density[key]) for key, weight in weights.items()}
    return Mask(keep, "diagonal", {"method": "diagonal classes", "density": dict(density)})


def _strongest_classes(classes: Ints, energy: npt.NDArray[Any], density: float) -> Bools:
    labels, inverse = np.unique(classes.ravel(), return_inverse=True)
    sums = np.bincount(inverse, weights=energy.ravel(), minlength=len(labels))
    count = max(1, round(density * len(labels)))
    chosen = np.zeros(len(labels), dtype=np.bool_)
    chosen[np.argsort(-sums, kind="stable")[:count]] = True
    return np.asarray(chosen[inverse].reshape(classes.shape))
