"""How long each layer of an evaluation took, as the runtime names the layers that begin."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["LayerClock"]


class LayerClock:
    """Milliseconds per layer. Call it with a layer's name as that layer's operations begin, and `stop` at the end."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._layer = ""
        self._since = 0.0
        self.ms: dict[str, float] = {}

    def __call__(self, layer: str) -> None:
        self.stop()
        self._layer, self._since = layer, self._now()

    def stop(self) -> None:
        if self._layer:
            self.ms[self._layer] = self.ms.get(self._layer, 0.0) + (self._now() - self._since) * 1e3
            self._layer = ""
