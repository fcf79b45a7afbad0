"""What a job is expected to take: the plan's estimate, corrected by what the same work took here before."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

__all__ = ["Price", "Prices"]

_FIRST_GUESS_MS = 1000.0  # where there is no estimate
_LEAST_MS = 0.05
_WEIGHT = 0.2  # of a new measurement in the mean; the first ones count for more
_REMEMBERED = 16  # measurements whose smallest is the floor
_MAX_ENTRIES = 1024
_PROBE_SECONDS = 30.0
_RATIO_BOUNDS = (1e-4, 1e4)


@dataclass(frozen=True)
class Price:
    """Expected milliseconds of a worker, from an estimate (None: a guess) and `ratio`, measured over predicted, None before
    the first measurement."""

    ms: float
    ratio: float | None = None
    estimate_ms: float | None = None


@dataclass
class _Entry:
    predicted_ms: float
    estimate_ms: float | None = None
    ratio: float = 1.0
    count: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    probed_at: float = 0.0


class Prices:
    """Prices by kind of work: for the engine a key is (job kind, plan digest, back end, machine)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    def knows(self, key: Hashable) -> bool:
        return key in self._entries

    def learn(self, key: Hashable, predicted_ms: float | None) -> None:
        """Take over an estimate; without one a guess stands until the first measurement."""
        self._entries[key] = _Entry(max(_LEAST_MS, predicted_ms or _FIRST_GUESS_MS), predicted_ms)
        while len(self._entries) > _MAX_ENTRIES:
            self._entries.popitem(last=False)

    def price(self, key: Hashable) -> Price:
        entry = self._entries.get(key)
        if entry is None:
            return Price(_FIRST_GUESS_MS)
        if not entry.count:
            return Price(entry.predicted_ms, None, entry.estimate_ms)
        return Price(max(_LEAST_MS, entry.predicted_ms * entry.ratio), entry.ratio, entry.estimate_ms)

    def floor_ms(self, key: Hashable) -> float:
        """The least of the last measurements, which a new caller's deadline is compared with; 0 while nobody knows.

        Whoever is refused for it brings no new measurement, so after a while without any it is 0 for one caller:
        otherwise one bad minute of the machine could refuse every later one.
        """
        entry = self._entries.get(key)
        if entry is None or not entry.count:
            return 0.0
        now = self._clock()
        if now - entry.probed_at > _PROBE_SECONDS:
            entry.probed_at = now
            return 0.0
        return min(entry.recent)

    def measured(self, key: Hashable, ms: float) -> None:
        """A job of this kind took `ms` of a worker."""
        entry = self._entries.get(key)
        if entry is None:
            return
        entry.count += 1
        entry.probed_at = self._clock()
        entry.recent.append(ms)
        ratio = min(max(ms / entry.predicted_ms, _RATIO_BOUNDS[0]), _RATIO_BOUNDS[1])
        entry.ratio += max(_WEIGHT, 1.0 / entry.count) * (ratio - entry.ratio)
