"""Compact storage of pattern-pruned convolutions (Ma et al., ECCV 2020): filter -> (input channel, pattern, values).

What the compilers of this family of papers call filter-kernel-weight (FKW) storage: the position of a weight is told
by the pattern, so that a kernel costs a channel number and a pattern number beside its values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from he_runtime.errors import ModelError

from .bits import bits_for, pack, packed_size, unpack
from .layer import Bools, Floats, Ints

__all__ = ["KernelStorage", "decode_kernels", "encode_kernels"]

_START_BYTES = 4


@dataclass(frozen=True)
class KernelStorage:
    """The kernels of a layer of `shape` (out, in/groups, kh, kw) that are not empty, filter by filter.

    `starts` (out + 1,): where each filter's kernels begin. `channels`, `patterns` (kernels,): the input channel within
    the group and the number of the pattern among `pattern_count`. `values` (kernels, entries): the weights, row-major.
    """

    shape: tuple[int, int, int, int]
    pattern_count: int
    starts: Ints
    channels: Ints
    patterns: Ints
    values: npt.NDArray[np.generic]

    @property
    def byte_size(self) -> int:
        """Exactly what `to_bytes` takes: 4 per filter start, packed channel and pattern numbers, the values."""
        numbers = sum(packed_size(len(self.channels), bits) for bits in self._bits)
        return _START_BYTES * len(self.starts) + numbers + self.values.nbytes

    @property
    def _bits(self) -> tuple[int, int]:
        return bits_for(self.shape[1]), bits_for(self.pattern_count)

    def to_bytes(self) -> bytes:
        """Starts, channels, patterns, values; the values as they are stored in `values` (its dtype)."""
        channel_bits, pattern_bits = self._bits
        numbers = pack(self.channels, channel_bits) + pack(self.patterns, pattern_bits)
        return self.starts.astype("<u4").tobytes() + numbers + np.ascontiguousarray(self.values).tobytes()

    @classmethod
    def from_bytes(
        cls, data: bytes, shape: tuple[int, int, int, int], library: Bools, dtype: npt.DTypeLike = np.float64
    ) -> KernelStorage:
        """The inverse of `to_bytes`, for patterns `library` (n, kh, kw); ModelError on data of another length."""
        head = _START_BYTES * (shape[0] + 1)
        starts = np.frombuffer(data[:head].ljust(head, b"\0"), dtype="<u4").astype(np.int64)
        count, entries = int(starts[-1]), int(library[0].sum())
        bits = bits_for(shape[1]), bits_for(len(library))
        sizes = [packed_size(count, b) for b in bits]
        if len(data) != head + sum(sizes) + count * entries * np.dtype(dtype).itemsize:
            raise ModelError(f"cannot read stored kernels: got {len(data)} bytes for shape {shape}")
        ends = np.cumsum([head, *sizes])
        channels, patterns = (unpack(data[ends[i] : ends[i + 1]], bits[i], count) for i in range(2))
        values = np.frombuffer(data[ends[2] :], dtype=dtype).reshape(count, entries)
        return cls(shape, len(library), starts, channels, patterns, values)


def encode_kernels(weights: npt.NDArray[np.generic], library: Bools) -> KernelStorage:
    """Store (out, in/groups, kh, kw) weights whose kernels are empty or lie within a pattern of `library` (n, kh, kw).

    Each kernel gets the first pattern that covers it. Raises ModelError where a kernel is in no pattern.
    """
    out, width, height, breadth = weights.shape
    taps = library.reshape(len(library), -1)
    kernels = weights.reshape(out * width, -1)
    used = np.flatnonzero((kernels != 0).any(axis=1))
    covered = ~((kernels[used] != 0)[:, None, :] & ~taps[None]).any(axis=2)  # (kernels, patterns)
    if not covered.any(axis=1).all():
        raise ModelError(
            f"cannot store {int((~covered.any(axis=1)).sum())} kernels: they have weights outside every pattern of the "
            "library; try KernelPatterns.keep with the same library"
        )
    patterns = np.argmax(covered, axis=1).astype(np.int64)
    places = np.stack([np.flatnonzero(p) for p in taps])  # (patterns, entries)
    starts = np.searchsorted(used, np.arange(out + 1) * width).astype(np.int64)
    values = np.take_along_axis(kernels[used], places[patterns], axis=1)
    return KernelStorage((out, width, height, breadth), len(library), starts, used % width, patterns, values)


def decode_kernels(storage: KernelStorage, library: Bools) -> Floats:
    """The (out, in/groups, kh, kw) weights."""
    out, width = storage.shape[:2]
    kernels = np.zeros((out * width, library[0].size), dtype=storage.values.dtype)
    filters = np.repeat(np.arange(out), np.diff(storage.starts))
    places = np.stack([np.flatnonzero(p) for p in library.reshape(len(library), -1)])
    rows = filters * width + storage.channels
    kernels[rows[:, None], places[storage.patterns]] = storage.values
    return kernels.reshape(storage.shape)
