"""What a linear map's zeros suggest for the layouts of the tensors that it joins."""

from __future__ import annotations

import math

import numpy as np

from .maps import LinearMap

__all__ = ["channel_groups"]


def channel_groups(map_: LinearMap, source: tuple[int, ...], target: tuple[int, ...]) -> int:
    """The most groups of neighbouring channels (axis 0) between which the map has no entry; 1 where it has.

    A convolution of g groups has g of them, a depthwise one as many as channels; so has a block-diagonal dense layer.
    """
    most = math.gcd(source[0], target[0])
    bounds = map_.matrix.indptr[:: math.prod(target[1:])].astype(np.int64)
    present = np.flatnonzero(np.diff(bounds))  # the output channels that read anything
    if most == 1 or not len(present):
        return 1
    area, starts = math.prod(source[1:]), bounds[:-1][present]
    first = np.minimum.reduceat(map_.matrix.indices, starts) // area
    last = np.maximum.reduceat(map_.matrix.indices, starts) // area
    for groups in range(most, 1, -1):
        if most % groups == 0:
            own, width = present // (target[0] // groups), source[0] // groups
            if (first // width == own).all() and (last // width == own).all():
                return groups
    return 1
