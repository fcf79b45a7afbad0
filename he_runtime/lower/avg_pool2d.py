"""Average pooling as a linear map: a depthwise convolution by 1/(kh*kw), padding counted."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from ..layout import WindowLayout
from ..model import CompressedModel, Node
from .maps import LinearMap


def avg_pool2d_map(_: CompressedModel, node: Node, shape: tuple[int, ...]) -> LinearMap:
    """Map from (C, H, W) to (C, H', W'), flat; each channel alone."""
    a = node.attrs
    kernel = (int(a["kernel"][0]), int(a["kernel"][1]))
    stride, padding = (tuple(int(v) for v in a[k]) for k in ("stride", "padding"))
    window = WindowLayout(
        (1, shape[1], shape[2]),
        kernel,
        (stride[0], stride[1]),
        (padding[0], padding[1]),
        (1, 1),
        (node.shape[1], node.shape[2]),
        slots=1,
    )
    area, outputs = kernel[0] * kernel[1], node.shape[1] * node.shape[2]
    sources = window.sources
    inside = np.flatnonzero(sources >= 0)
    one = sp.csr_array(
        (np.full(len(inside), 1.0 / area), (inside % outputs, sources[inside])), shape=(outputs, shape[1] * shape[2])
    )
    return LinearMap(sp.csr_array(sp.kron(sp.eye_array(shape[0]), one)), np.zeros(shape[0] * outputs))
