"""A cursor over hostile bytes: it never reads past the end, never allocates, and insists on using every byte."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import Reason, WireError

__all__ = ["Reader"]


class Reader:
    def __init__(self, data: memoryview, what: str) -> None:
        self._data = data
        self._offset = 0
        self.what = what

    def _advance(self, count: int) -> int:
        start = self._offset
        if count > len(self._data) - start:
            raise WireError(
                f"cannot read {self.what}: got {len(self._data) - start} bytes, need {count}; try sending it again",
                Reason.BYTES_TRUNCATED,
            )
        self._offset = start + count
        return start

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack_from(self._data, self._advance(layout.size))

    def take(self, count: int) -> bytes:
        start = self._advance(count)
        return bytes(self._data[start : start + count])

    def words(self, rows: int, columns: int) -> npt.NDArray[np.uint64]:
        """A view (rows, columns) of little-endian 64-bit words; no copy."""
        start = self._advance(8 * rows * columns)
        array = np.frombuffer(self._data, dtype="<u8", count=rows * columns, offset=start)
        return array.reshape(rows, columns).astype(np.uint64, copy=False)

    def finish(self) -> None:
        left = len(self._data) - self._offset
        if left:
            raise WireError(
                f"cannot read {self.what}: got {left} bytes after the last field, need none; try this project's codec"
            )
