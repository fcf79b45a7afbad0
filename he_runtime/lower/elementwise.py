"""Reshape (a change of shape only) and per-channel affine maps as linear maps."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..model import CompressedModel, Node
from .maps import LinearMap


def reshape_map(_: CompressedModel, __: Node, shape: tuple[int, ...]) -> LinearMap:
    """The identity on row-major elements; composing with it is free."""
    return identity(math.prod(shape))


def identity(size: int) -> LinearMap:
    return LinearMap(sp.csr_array(sp.eye_array(size)), np.zeros(size))


def affine_map(model: CompressedModel, node: Node, shape: tuple[int, ...]) -> LinearMap:
    """scale * x + shift, per channel or for all."""
    scale, shift = (broadcast_channels(model.array(node, role), shape) for role in ("scale", "shift"))
    return LinearMap(sp.csr_array(sp.diags_array(scale)), shift)


def broadcast_channels(values: npt.NDArray[np.float64] | None, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Per-channel (C,) or scalar coefficients -> one per element (size,)."""
    assert values is not None
    column = values if values.ndim == 0 else values.reshape((-1,) + (1,) * (len(shape) - 1))
    return np.broadcast_to(column, shape).astype(np.float64).ravel()
