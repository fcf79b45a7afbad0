"""Least-recently-used caches bounded by cost: loaded keys by bytes, loaded models by count."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["CostLru"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class CostLru(Generic[K, V]):
    """Keeps the most recently used entries whose costs sum to at most `budget`; the newest one always stays."""

    def __init__(self, budget: int, cost: Callable[[V], int]) -> None:
        self._budget = budget
        self._cost = cost
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._total = 0
        self.hits = self.misses = self.evictions = 0  # since the cache was made

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def total(self) -> int:
        return self._total

    def keys(self) -> list[K]:
        """From the least to the most recently used."""
        return list(self._entries)

    def get(self, key: K) -> V | None:
        value = self._entries.get(key)
        if value is None:
            self.misses += 1
        else:
            self.hits += 1
            self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        self.drop(key)
        self._entries[key] = value
        self._total += self._cost(value)
        while self._total > self._budget and len(self._entries) > 1:
            self.drop(next(iter(self._entries)))
            self.evictions += 1

    def drop(self, key: K) -> None:
        value = self._entries.pop(key, None)
        if value is not None:
            self._total -= self._cost(value)
