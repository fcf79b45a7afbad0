"""A bound on the values of a metric's label: each one costs memory here and in whatever scrapes, for ever."""

from __future__ import annotations

__all__ = ["REST", "Bounded"]

REST = "other"


class Bounded:
    """Lets the first `most` values through as they are, and calls all further ones "other"."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: set[str] = set()

    def label(self, value: str) -> str:
        if value not in self._seen:
            if len(self._seen) >= self._most:
                return REST
            self._seen.add(value)
        return value
