"""The compact format of gather-scatter patterns (Sun et al., arXiv 2112.10898): values, indices and group offsets.

Lane j of a group reads bank j, so of a column j + B * t only t is stored; and which row of the bundle it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from he_runtime.errors import ModelError

from .bits import bits_for, pack, packed_size, unpack
from .gather import bundle_starts, peel
from .layer import Bools, Ints

__all__ = ["GatherStorage", "decode_gather", "encode_gather"]

_POINTER_BYTES = 4


@dataclass(frozen=True)
class GatherStorage:
    """A matrix of `shape` (rows, columns) in GS(bank, per_row).

    `indptr` (bundles + 1,): the first group of each bundle. `values`, `index`, `row` (groups, B): the weight of each
    lane, its column // B and its row within the bundle. An idle lane of a short last bundle holds three zeros.
    """

    shape: tuple[int, int]
    bank: int
    per_row: int
    indptr: Ints
    values: npt.NDArray[np.generic]
    index: Ints
    row: Ints

    @property
    def byte_size(self) -> int:
        """Exactly what `to_bytes` takes: 4 per pointer, packed indices and rows, the values."""
        index_bits, row_bits = _bits(self.shape, self.bank, self.per_row)
        numbers = packed_size(self.index.size, index_bits) + packed_size(self.row.size, row_bits)
        return _POINTER_BYTES * len(self.indptr) + numbers + self.values.nbytes

    def to_bytes(self) -> bytes:
        """Pointers, indices, rows, values; the values as they are stored in `values` (its dtype)."""
        index_bits, row_bits = _bits(self.shape, self.bank, self.per_row)
        numbers = pack(self.index, index_bits) + pack(self.row, row_bits)
        return self.indptr.astype("<u4").tobytes() + numbers + np.ascontiguousarray(self.values).tobytes()

    @classmethod
    def from_bytes(
        cls, data: bytes, shape: tuple[int, int], bank: int, per_row: int, dtype: npt.DTypeLike = np.float64
    ) -> GatherStorage:
        """The inverse of `to_bytes`; ModelError on data of another length."""
        head = _POINTER_BYTES * (len(bundle_starts(shape[0], bank // per_row)) + 1)
        indptr = np.frombuffer(data[:head].ljust(head, b"\0"), dtype="<u4").astype(np.int64)
        lanes = int(indptr[-1]) * bank
        bits = _bits(shape, bank, per_row)
        sizes = [packed_size(lanes, b) for b in bits]
        if len(data) != head + sum(sizes) + lanes * np.dtype(dtype).itemsize:
            raise ModelError(f"cannot read a stored gather pattern: got {len(data)} bytes for shape {shape}")
        ends = np.cumsum([head, *sizes])
        index, row = (unpack(data[ends[i] : ends[i + 1]], bits[i], lanes).reshape(-1, bank) for i in range(2))
        values = np.frombuffer(data[ends[2] :], dtype=dtype).reshape(-1, bank)
        return cls(shape, bank, per_row, indptr, values, index, row)


def encode_gather(
    weights: npt.NDArray[np.generic], bank: int, per_row: int, mask: Bools | None = None
) -> GatherStorage:
    """Store a (rows, columns) matrix; `mask` says which weights are kept, by default those that are not zero.

    Bundles may have different numbers of groups. Raises ModelError where the mask is not balanced.
    """
    kept = np.asarray(weights != 0 if mask is None else mask, dtype=np.bool_)
    indptr, parts = [0], []
    for start in bundle_starts(len(kept), bank // per_row):
        rows, columns = peel(kept[start : start + bank // per_row], bank, per_row)
        parts.append(np.stack([rows, columns, np.where(rows < 0, -1, start + rows)]))
        indptr.append(indptr[-1] + len(rows))
    row, column, absolute = np.concatenate(parts, axis=1)
    idle = row < 0
    values = np.where(idle, np.zeros((), dtype=weights.dtype), weights[absolute, column])
    index, row = np.where(idle, 0, column // bank), np.where(idle, 0, row)
    rows, columns = kept.shape
    return GatherStorage((rows, columns), bank, per_row, np.array(indptr, dtype=np.int64), values, index, row)


def decode_gather(storage: GatherStorage) -> npt.NDArray[np.generic]:
    """The (rows, columns) matrix."""
    matrix = np.zeros(storage.shape, dtype=storage.values.dtype)
    bundle = np.repeat(np.arange(len(storage.indptr) - 1), np.diff(storage.indptr))
    rows = bundle[:, None] * (storage.bank // storage.per_row) + storage.row
    columns = storage.index * storage.bank + np.arange(storage.bank)
    used = storage.values != 0  # what idle lanes and weights of zero leave is zero already
    matrix[rows[used], columns[used]] = storage.values[used]
    return matrix


def _bits(shape: tuple[int, int], bank: int, per_row: int) -> tuple[int, int]:
    return bits_for(-(-shape[1] // bank)), bits_for(bank // per_row)
