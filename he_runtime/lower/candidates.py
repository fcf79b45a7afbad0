"""What a linear map's zeros suggest for the layouts of the tensors that it joins."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..layout import Layout
from .maps import LinearMap

__all__ = ["channel_groups", "with_rows_alone"]

_MOST_ALONE = 4
_DENSE = 2  # times the usual non-zeros of a row


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


def with_rows_alone(layout: Layout, map_: LinearMap) -> list[Layout]:
    """Of a vector that the map makes, the layouts with the 1 to 4 densest rows alone; none where no row stands out.

    A dense row of a pruned layer occupies every diagonal by itself. Alone it is a dot product: one product per input
    ciphertext, log2(period) folds. (2DPP, arXiv 2604.04683, treats dense rows apart in sparse products.)
    """
    entries = np.diff(map_.matrix.indptr)
    if len(layout.shape) > 1 or not entries.any():
        return []
    order = np.argsort(-entries, kind="stable")[:_MOST_ALONE]
    dense = order[entries[order] > _DENSE * np.median(entries[entries > 0])]
    return [replace(layout, alone=tuple(sorted(dense[: k + 1].tolist()))) for k in range(len(dense))]
