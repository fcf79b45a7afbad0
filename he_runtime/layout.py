"""Where the elements of a tensor lie: (channel, height, width) or (feature) -> (ciphertext, slot).

A layout writes every tensor axis in mixed radix and gives each digit a stride, so strides, gaps, tiles and channel
multiplexing are one idea. The *flat position* of an element is the sum of digit times stride; ciphertext = position
// slots, slot = position % slots. `span` is the padded size of the tensor, a power of two or a multiple of the slots:
a tensor that fits one ciphertext is replicated with period `span`; unused positions hold exact zeros, but for the partial
sums between pitched copies (lower/pitch.py). A few elements may stand *alone*, each in every slot of a ciphertext of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["Digit", "Layout", "WindowLayout", "contiguous", "image", "image_candidates", "interleaved"]

Positions = npt.NDArray[np.int64]
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Digit:
    """One digit of an axis: it counts to `extent`, each count moves the position by `stride`."""

    extent: int
    stride: int


def _pow2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


@dataclass(frozen=True)
class Layout:
    """A tensor's slot layout. `axes[k]` are the digits of axis k, most significant first.

    `plane` and `gap` describe images: the physical (height, width) of a channel plane and the pixel distance of
    neighbours in it (1 = dense); they are (0, 0) and 1 for vectors. The elements `alone` have the last ciphertexts, in
    this order; their places among the others hold zeros. A span of at least `padded`, a power of two, spares folds.
    """

    shape: tuple[int, ...]
    axes: tuple[tuple[Digit, ...], ...]
    slots: int
    plane: tuple[int, int] = (0, 0)
    gap: int = 1
    alone: tuple[int, ...] = ()
    padded: int = 1

    @cached_property
    def positions(self) -> Positions:
        """Flat position of every element, in row-major order: (size,); for those alone, slot 0 of their ciphertext."""
        found = self._regular.copy()
        found[list(self.alone)] = self.span_ciphertexts * self.slots + np.arange(len(self.alone)) * self.slots
        return found

    @cached_property
    def _regular(self) -> Positions:
        """Positions as they would be with no element alone."""
        total = np.zeros(self.shape, dtype=np.int64)
        for axis, digits in enumerate(self.axes):
            index = np.arange(self.shape[axis])
            offset = np.zeros_like(index)
            for digit in reversed(digits):
                offset += index % digit.extent * digit.stride
                index = index // digit.extent
            total += offset.reshape((-1,) + (1,) * (len(self.shape) - axis - 1))
        return total.ravel()

    @cached_property
    def _together(self) -> Positions:
        """The elements that are not alone."""
        return np.delete(np.arange(self.size), self.alone)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def span(self) -> int:
        """Padded size in slots of all that is not alone: the period, or a multiple of `slots` over several ciphertexts."""
        needed = int(self._regular[self._together].max(initial=0)) + 1
        return max(_pow2(needed), self.padded) if needed <= self.slots else -(-needed // self.slots) * self.slots

    @property
    def period(self) -> int:
        """Period of the content of one ciphertext, at most `slots`."""
        return min(self.span, self.slots)

    @property
    def span_ciphertexts(self) -> int:
        """Ciphertexts of all that is not alone."""
        return -(-self.span // self.slots)

    @property
    def ciphertexts(self) -> int:
        return self.span_ciphertexts + len(self.alone)

    @property
    def uniform(self) -> frozenset[int]:
        """The ciphertexts that hold one element in every slot, so that no rotation changes them."""
        return frozenset(range(self.span_ciphertexts, self.ciphertexts))

    @cached_property
    def slot_map(self) -> npt.NDArray[np.int32]:
        """(ciphertexts, slots): flat element index in each slot, replicas included, -1 where the slot is zero."""
        elements = self.rows(np.arange(self.size, dtype=np.int32), -1)
        return np.ascontiguousarray(np.tile(elements, self.slots // self.period))

    @property
    def likeness(self) -> npt.NDArray[np.int32]:
        """`slot_map`, with an element of like size for slots that hold neither one nor zero."""
        return self.slot_map

    def spread(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Elements (size,) -> one period of slots (ciphertexts, period), zeros in the padding."""
        return self.rows(values, 0.0)

    def rows(self, values: npt.NDArray[T], padding: float) -> npt.NDArray[T]:
        """Elements (size,) -> (ciphertexts, period)."""
        base = np.full(self.span, padding, dtype=values.dtype)
        base[self._regular[self._together]] = values[self._together]
        single = np.repeat(values[list(self.alone), None], self.period, axis=1)
        return np.concatenate([base.reshape(self.span_ciphertexts, self.period), single])

    def describe(self) -> str:
        form = f"plane {self.plane[0]}x{self.plane[1]} gap {self.gap}" if self.plane[0] else "vector"
        if self.axes[0][0].stride < self.axes[0][-1].stride:
            form += ", groups interleaved"
        count = f"{self.span_ciphertexts} + {len(self.alone)}" if self.alone else f"{self.ciphertexts}"
        return f"{'x'.join(map(str, self.shape))} as {form}, {count} ct, period {self.period}"


@dataclass(frozen=True)
class WindowLayout:
    """A client-side im2col: slot (tap, position) holds the pixel that tap sees at that output position.

    Only an input tensor can have it, since the client does the gathering. The lowering then sees a tensor of shape
    (channels * kh * kw, positions) laid out with stride `pitch` per tap; the client sees `slot_map` over the image.
    """

    source_shape: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    outputs: tuple[int, int]
    slots: int

    @property
    def taps(self) -> int:
        return self.source_shape[0] * math.prod(self.kernel)

    @property
    def pitch(self) -> int:
        return _pow2(math.prod(self.outputs))

    @cached_property
    def inner(self) -> Layout:
        """The layout of the gathered tensor (taps, positions)."""
        count = math.prod(self.outputs)
        return Layout((self.taps, count), ((Digit(self.taps, self.pitch),), (Digit(count, 1),)), self.slots)

    @cached_property
    def sources(self) -> Positions:
        """(taps * positions,): flat pixel index behind each gathered element, -1 for zero padding."""
        channels, height, width = self.source_shape
        c, i, j, oh, ow = np.meshgrid(
            np.arange(channels), *(np.arange(n) for n in (*self.kernel, *self.outputs)), indexing="ij"
        )
        h = oh * self.stride[0] + i * self.dilation[0] - self.padding[0]
        w = ow * self.stride[1] + j * self.dilation[1] - self.padding[1]
        inside = (h >= 0) & (h < height) & (w >= 0) & (w < width)
        return np.where(inside, (c * height + h) * width + w, -1).ravel().astype(np.int64)

    @property
    def span(self) -> int:
        return self.inner.span

    @property
    def period(self) -> int:
        return self.inner.period

    @property
    def ciphertexts(self) -> int:
        return self.inner.ciphertexts

    @property
    def covers_source(self) -> bool:
        """Whether every pixel is seen by some window; a pixel that none sees could not be placed at all."""
        return len(np.unique(self.sources[self.sources >= 0])) == math.prod(self.source_shape)

    @cached_property
    def slot_map(self) -> npt.NDArray[np.int32]:
        base = np.full(self.span, -1, dtype=np.int32)
        base[self.inner.positions] = self.sources
        return _tile(base, self.ciphertexts, self.slots)

    def describe(self) -> str:
        return (
            f"{'x'.join(map(str, self.source_shape))} as {self.taps} taps x {math.prod(self.outputs)} windows, "
            f"{self.ciphertexts} ct, period {self.period}"
        )


def _tile(base: npt.NDArray[np.int32], ciphertexts: int, slots: int) -> npt.NDArray[np.int32]:
    return np.resize(base, (ciphertexts, slots)) if base.size < slots else base.reshape(ciphertexts, slots)


def contiguous(shape: tuple[int, ...], slots: int) -> Layout:
    """Row-major order without gaps."""
    axes, stride = [], 1
    for n in reversed(shape):
        axes.append((Digit(n, stride),))
        stride *= n
    plane = (shape[1], shape[2]) if len(shape) == 3 else (0, 0)
    return Layout(shape, tuple(reversed(axes)), slots, plane)


def image(shape: tuple[int, int, int], slots: int, plane: tuple[int, int], gap: int, pitch: int) -> Layout:
    """(C, H, W) multiplexed into physical planes with gaps: gap^2 channels share one plane.

    Channel c lies in plane c // gap^2 at sub-offset c % gap^2; pixel (h, w) at (h*gap, w*gap) of the plane, planes
    `pitch` slots apart (single-level strided convolution: Orion, ASPLOS'25, section 4).
    """
    channels, height, width = shape
    shared = min(channels, gap * gap)
    planes = -(-channels // shared)
    channel_axis = (Digit(planes, pitch), Digit(-(-shared // gap), plane[1]), Digit(min(shared, gap), 1))
    if shared % min(shared, gap):  # a partly filled last row of sub-offsets still counts in full rows of `gap`
        channel_axis = (Digit(planes, pitch), Digit(gap, plane[1]), Digit(gap, 1))
    axes = (channel_axis, (Digit(height, gap * plane[1]),), (Digit(width, gap),))
    return Layout(shape, axes, slots, plane, gap)


def interleaved(layout: Layout, groups: int) -> Layout | None:
    """Axis 0 in the order (member, group): member j of group i stands where `layout` has index j * groups + i.

    A block-diagonal map between two such orders moves by multiples of `groups` only, hence along diagonals that wrap: as
    many as a group has members, instead of nearly twice that. None where the digits of the axis do not divide so.
    """
    across: list[Digit] = []  # the digits that count groups, and those that count members, least significant first
    within: list[Digit] = []
    left = groups
    for digit in reversed(layout.axes[0]):
        if left % digit.extent == 0:
            across.append(digit)
            left //= digit.extent
        elif digit.extent % left == 0:
            across.append(Digit(left, digit.stride))
            within.append(Digit(digit.extent // left, digit.stride * left))
            left = 1
        else:
            return None
    if left > 1 or math.prod(d.extent for d in within) * groups != layout.shape[0]:
        return None
    axis = (*reversed(across), *reversed(within))
    return replace(layout, axes=(axis, *layout.axes[1:]))


def image_candidates(shape: tuple[int, ...], slots: int, inherited: tuple[tuple[int, int], ...]) -> list[Layout]:
    """Layouts worth pricing for a tensor: contiguous, power-of-two planes, and the gaps that earlier planes allow."""
    candidates = [contiguous(shape, slots)]
    if len(shape) != 3:
        return candidates
    channels, height, width = shape
    area = height * width
    if _pow2(area) != area:
        candidates.append(image((channels, height, width), slots, (height, width), 1, _pow2(area)))
    for plane in inherited:
        gap = min(plane[0] // height, plane[1] // width)
        if plane == (height, width) or gap < 1:
            continue
        pitch = plane[0] * plane[1]
        for p in {pitch, _pow2(pitch)}:
            candidates.append(image((channels, height, width), slots, plane, gap, p))
    return candidates
