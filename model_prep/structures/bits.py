"""Small unsigned integers side by side in bytes: what compact formats of sparse weights are measured in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from he_runtime.errors import ModelError

from .layer import Ints

__all__ = ["bits_for", "pack", "packed_size", "unpack"]


def bits_for(values: int) -> int:
    """Bits that tell `values` values apart: 0 for one value."""
    return max(0, values - 1).bit_length()


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` integers of `bits` bits, the last byte filled up."""
    return -(-count * bits // 8)


def pack(values: npt.NDArray[np.integer], bits: int) -> bytes:
    """The integers, row-major, each with its `bits` bits from the lowest up; ModelError where one needs more."""
    flat = np.asarray(values, dtype=np.int64).ravel()
    if flat.size and (flat.min() < 0 or int(flat.max()).bit_length() > bits):
        raise ModelError(f"cannot pack {flat.min()}..{flat.max()} in {bits} bits")
    return np.packbits((flat[:, None] >> np.arange(bits)) & 1, bitorder="little").tobytes()


def unpack(data: bytes, bits: int, count: int) -> Ints:
    """The inverse of `pack`; ModelError where the data have another length."""
    if len(data) != packed_size(count, bits):
        raise ModelError(f"cannot unpack {count} integers of {bits} bits: got {len(data)} bytes")
    digits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=count * bits, bitorder="little")
    return np.asarray(digits.reshape(count, bits).astype(np.int64) @ (1 << np.arange(bits)), dtype=np.int64)
