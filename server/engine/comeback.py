"""When one tenant's requests that were turned away should come back: one after the other, as fast as there will be room."""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["Comeback"]

_LEAST_SECONDS = 0.05
_MOST_SECONDS = 60.0
_JITTER = 0.25


class Comeback:
    """Times to come back at. Callers who are all told the same time would all be turned away again, but for one; so each
    gets a time of its own, later than the one before by what serving that one will take, and a little of chance."""

    def __init__(self, workers: int, clock: Callable[[], float], generator: random.Random) -> None:
        self._workers = workers
        self._clock = clock
        self._random = generator
        self._next = 0.0

    def seconds(self, until_room: float, price_ms: float) -> float:
        """For a caller of a request of `price_ms`, when there will be room in `until_room` seconds: 0.05 to 60."""
        now = self._clock()
        at = max(now + until_room, self._next)
        if at - now >= _MOST_SECONDS:
            return self._random.uniform(_MOST_SECONDS / 2, _MOST_SECONDS)
        self._next = at + price_ms / 1e3 / self._workers
        return self.about(at - now)

    def about(self, seconds: float) -> float:
        """This time, and a little of chance more."""
        return min(max(_LEAST_SECONDS, seconds) * (1 + _JITTER * self._random.random()), _MOST_SECONDS)
