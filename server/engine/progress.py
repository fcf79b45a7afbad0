"""How far an evaluation is: written by the worker into memory that it shares with the front door, read there.

A counter goes with the numbers: the reader takes them when it was even, and the same before and after. They come from a process that parses strangers' bytes, so the reader believes them only within bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Progress", "ProgressBoard", "ProgressWriter"]

_TRIES = 5
_MOST = 1 << 32


@dataclass(frozen=True)
class Progress:
    """Operations done of those planned, and the layer that the next one belongs to (from 0) of `layers`, of whose own
    operations `share` (0 to 1) are done."""

    done: int
    planned: int
    layer: int
    layers: int
    share: float = 0.0


class ProgressBoard:
    """56 shared bytes. One writer (the worker), one reader (the front door)."""

    SIZE = 56

    def __init__(self, memory: Any) -> None:
        self._view = memoryview(memory).cast("Q")

    def write(self, number: int, progress: Progress) -> None:
        view = self._view
        version = view[0] + 1 | 1
        view[0] = version
        view[1], view[2], view[3] = number, progress.done, progress.planned
        view[4], view[5], view[6] = progress.layer, progress.layers, round(progress.share * _MOST)
        view[0] = version + 1

    def read(self, number: int) -> Progress | None:
        """Of job `number`; None when there is none yet, or the worker is just writing."""
        view = self._view
        for _ in range(_TRIES):
            before = view[0]
            job, done, planned, layer, layers, share = view[1:7].tolist()
            if before % 2 == 0 and view[0] == before:
                if job != number or not 0 < planned < _MOST or not 0 < layers < _MOST:
                    return None
                return Progress(min(done, planned), planned, min(layer, layers - 1), layers, min(share, _MOST) / _MOST)
        return None

    def close(self) -> None:
        self._view.release()


class ProgressWriter:
    """What a runtime tells of its evaluation: call it with a layer's name, and `operation` before each operation.

    `layers` are the model's, with the number of their operations.
    """

    def __init__(
        self, board: ProgressBoard, number: int, layers: Mapping[str, int], also: Callable[[str], None] | None = None
    ) -> None:
        self._board = board
        self._number = number
        self._layers = dict(layers)
        self._places = {name: place for place, name in enumerate(layers)}
        self._begun = dict.fromkeys(layers, 0)
        self._also = also
        self._name = ""

    def __call__(self, layer: str) -> None:
        self._name = layer
        if self._also is not None:
            self._also(layer)

    def operation(self, done: int, planned: int) -> None:
        """`done` of `planned` operations are behind, and one of the current layer begins."""
        name = self._name
        if name in self._places:
            share = min(1.0, self._begun[name] / max(1, self._layers[name]))
            self._begun[name] += 1
            self._board.write(self._number, Progress(done, planned, self._places[name], len(self._places), share))
