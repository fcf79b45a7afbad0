"""A part file that is open: what of the stream is in it, and where that belongs."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

from protos.manifest import Segments

from .db import UploadRow

__all__ = ["Part"]


@dataclass
class Part:
    """An open part file: `size` bytes of the stream written, the first `durable` of them recorded.

    `segments` say where in the file they belong, if not where they are in the stream.
    """

    row: UploadRow
    descriptor: int
    segments: Segments | None
    size: int
    durable: int
    touched: float
    lock: threading.Lock = field(default_factory=threading.Lock)
    completing: threading.Lock = field(default_factory=threading.Lock)  # may take long, so nothing else waits for it
    closed: bool = False

    def write(self, data: bytes) -> None:
        """At the end of the stream, within its announced size."""
        view, places = memoryview(data), [(self.size, len(data))]
        for at, count in self.segments.places(self.size, len(data)) if self.segments else places:
            end = at + count
            while at < end:
                written = os.pwrite(self.descriptor, view[: end - at], at)
                view, at = view[written:], at + written
        self.size += len(data)

    def cut_back(self) -> None:
        """Forget what is not recorded."""
        os.ftruncate(self.descriptor, self.segments.end(self.durable) if self.segments else self.durable)
        self.size = self.durable
