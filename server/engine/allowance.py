"""A tenant's evaluation time per minute."""

from __future__ import annotations

__all__ = ["Allowance"]


class Allowance:
    """A token bucket of milliseconds: `per_minute` flow in, and at most a minute's worth is saved up. 0: no limit.

    What is charged may leave it in debt, for a price can exceed the bucket: then it must only be full.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self.per_minute = per_minute
        self._level = per_minute
        self._at = now

    def level(self, now: float) -> float:
        """Milliseconds that may be spent."""
        self._level = min(self.per_minute, self._level + max(0.0, now - self._at) * self.per_minute / 60.0)
        self._at = max(self._at, now)
        return self._level

    def seconds_until(self, price_ms: float, now: float) -> float:
        """How long until `price_ms` may be charged; 0 when it may be now."""
        if not self.per_minute:
            return 0.0
        missing = min(price_ms, self.per_minute) - self.level(now)
        return 0.0 if missing <= 1e-6 else missing / self.per_minute * 60.0

    def charge(self, ms: float, now: float) -> None:
        """Take `ms`, or give back a negative amount of them."""
        self.level(now)
        self._level -= ms

    def is_full(self, now: float) -> bool:
        return self.level(now) >= self.per_minute
