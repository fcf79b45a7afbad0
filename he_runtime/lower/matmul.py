"""The product of two encrypted matrices as stages that exist: spread both out, multiply element by element, sum.

(m, k) x (k, n): left and right become tensors (m, k, n) by 0/1 maps, one product of ciphertexts and one level follow, and
a 0/1 map sums over k. The maps merge with the linear layers around them, and the spread tensors are laid out as suits
them, since nothing else reads them. Leading axes (heads) are shared by both.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..model import Node
from .maps import LinearMap

__all__ = ["matmul_maps", "matmul_shape"]

Shape = tuple[int, ...]


def matmul_shape(node: Node, left: Shape, right: Shape) -> Shape:
    """(..., m, k, n) from the shapes of the two sides, either of which may be read transposed."""
    rows, inner = reversed(left[-2:]) if node.attrs.get("transpose_left") else left[-2:]
    columns = right[-2] if node.attrs.get("transpose_right") else right[-1]
    return (*left[:-2], rows, inner, columns)


def matmul_maps(node: Node, left: Shape, right: Shape) -> tuple[LinearMap, LinearMap, LinearMap]:
    """The maps left -> (..., m, k, n), right -> (..., m, k, n) and (..., m, k, n) -> (..., m, n), all flat."""
    shape = matmul_shape(node, left, right)
    heads, rows, columns = shape[:-3], shape[-3], shape[-1]
    of_left, of_right = (np.arange(math.prod(s)).reshape(s) for s in (left, right))
    if node.attrs.get("transpose_left"):
        of_left = of_left.swapaxes(-1, -2)
    if node.attrs.get("transpose_right"):
        of_right = of_right.swapaxes(-1, -2)
    result = np.arange(math.prod(heads) * rows * columns).reshape(*heads, rows, columns)
    sums = _selection(np.broadcast_to(result[..., :, None, :], shape), result.size)
    return (
        _selection(np.broadcast_to(of_left[..., :, :, None], shape), of_left.size),
        _selection(np.broadcast_to(of_right[..., None, :, :], shape), of_right.size),
        LinearMap(sp.csr_array(sums.matrix.T), np.zeros(result.size)),
    )


def _selection(sources: npt.NDArray[np.int64], size: int) -> LinearMap:
    """Element r of the output is element sources[r] of the input."""
    rows = np.arange(sources.size)
    matrix = sp.csr_array((np.ones(sources.size), (rows, sources.ravel())), shape=(sources.size, size))
    return LinearMap(matrix, np.zeros(sources.size))
