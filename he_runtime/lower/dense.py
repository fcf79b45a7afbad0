"""Dense layer as a linear map: y = W x + b, W (out, in)."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ..model import CompressedModel, Node
from .maps import LinearMap


def dense_map(model: CompressedModel, node: Node, shape: tuple[int, ...]) -> LinearMap:
    """Weight (out, in) over the last axis; leading axes of `shape`, if any, share it."""
    weight, bias = model.array(node, "weight"), model.array(node, "bias")
    assert weight is not None
    rows = int(np.prod(shape[:-1], dtype=np.int64))
    matrix = sp.csr_array(weight) if rows == 1 else sp.csr_array(sp.kron(sp.eye_array(rows), weight))
    shift = np.zeros(len(weight)) if bias is None else bias
    return LinearMap(matrix, np.tile(shift, rows))
