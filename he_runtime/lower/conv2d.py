"""Two-dimensional convolution as a linear map (any stride, zero padding, dilation, groups).

Two forms: over the image itself, and over the windows that a client gathers (im2col), where every weight meets its
pixel at the same offset and the map is block-diagonal in the output position.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..layout import WindowLayout
from ..model import CompressedModel, Node
from .maps import LinearMap


def conv2d_map(model: CompressedModel, node: Node, shape: tuple[int, ...]) -> LinearMap:
    """Map from the flat image (C, H, W) to the flat output (C', H', W')."""
    windowed = conv2d_window_map(model, node, shape)
    window = window_layout(model, node, shape, slots=1)
    sources = window.sources
    inside = np.flatnonzero(sources >= 0)
    gather = sp.csr_array((np.ones(len(inside)), (inside, sources[inside])), shape=(len(sources), int(np.prod(shape))))
    return LinearMap(sp.csr_array(windowed.matrix @ gather), windowed.bias)


def conv2d_window_map(model: CompressedModel, node: Node, shape: tuple[int, ...]) -> LinearMap:
    """Map from gathered windows (C*kh*kw, H'*W'), flat, to the flat output (C', H', W')."""
    weight, bias = model.array(node, "weight"), model.array(node, "bias")
    assert weight is not None
    positions = int(np.prod(node.shape[1:]))
    per_tap = sp.csr_array(_ungrouped(weight, int(node.attrs["groups"])))
    matrix = sp.csr_array(sp.kron(per_tap, sp.eye_array(positions)))
    shift = np.zeros(len(weight)) if bias is None else bias
    return LinearMap(matrix, np.repeat(shift, positions))


def window_layout(model: CompressedModel, node: Node, shape: tuple[int, ...], slots: int) -> WindowLayout:
    """The im2col input layout that fits this convolution."""
    weight = model.array(node, "weight")
    assert weight is not None and len(shape) == 3
    a = node.attrs
    return WindowLayout(
        (shape[0], shape[1], shape[2]),
        (weight.shape[2], weight.shape[3]),
        (int(a["stride"][0]), int(a["stride"][1])),
        (int(a["padding"][0]), int(a["padding"][1])),
        (int(a["dilation"][0]), int(a["dilation"][1])),
        (node.shape[1], node.shape[2]),
        slots,
    )


def _ungrouped(weight: npt.NDArray[np.float64], groups: int) -> npt.NDArray[np.float64]:
    """(out, in/groups, kh, kw) -> (out, in*kh*kw) with zeros where a group does not look."""
    out, per_group = weight.shape[0], int(np.prod(weight.shape[1:]))
    full = np.zeros((out, groups * per_group))
    for g in range(groups):
        rows = slice(g * out // groups, (g + 1) * out // groups)
        full[rows, g * per_group : (g + 1) * per_group] = weight[rows].reshape(-1, per_group)
    return full
