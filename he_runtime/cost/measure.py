"""Timing on a machine that others use too: rounds interleaved with a fixed probe that tells a disturbed one."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from ..errors import ParameterError

__all__ = ["Clock", "Measurement", "ProbeGate", "Rounds", "measure_latency"]

TOLERANCE = 0.10
_WINDOW = 15
Clock = Callable[[], float]
K = TypeVar("K", bound=Hashable)


class ProbeGate:
    """Judges a round by its probe: undisturbed while within 10 % of the running median of the last probes.

    The probe only ever discards a round; no time is scaled by it.
    """

    def __init__(self, probe: Callable[[], None], warm_up: int = 5, clock: Clock = time.perf_counter) -> None:
        self._probe, self._clock = probe, clock
        self._history: deque[float] = deque(maxlen=_WINDOW)
        for _ in range(warm_up):
            self._history.append(timed(probe, clock))

    def check(self) -> bool:
        """Run the probe once; True when it did not move."""
        seconds = timed(self._probe, self._clock)
        usual = statistics.median(self._history) if self._history else seconds
        self._history.append(seconds)
        return abs(seconds - usual) <= TOLERANCE * usual


@dataclass(frozen=True)
class Measurement:
    """Median milliseconds over `rounds` kept rounds; `discarded` were repeated because their probe moved.

    `disturbed` of the kept rounds had a moved probe too, kept because the repeats were used up: above zero, the
    machine was too busy for the figure to be trusted.
    """

    median_ms: float
    rounds: int
    discarded: int
    disturbed: int


def measure_latency(
    run: Callable[[], None],
    probe: Callable[[], None],
    runs: int = 7,
    max_repeats: int | None = None,
    clock: Clock = time.perf_counter,
) -> Measurement:
    """Median of `runs` timed calls of `run`, each between two probes; a round whose probe moved is repeated.

    At most `max_repeats` rounds (default four per run) are repeated, so that this ends on any machine.
    `clock` is the time a user waits; time.thread_time tells a single-threaded run's processor time instead.
    ParameterError for fewer than one run.
    """
    if runs < 1:
        raise ParameterError(f"cannot measure a latency over {runs} runs: need at least 1")
    left = 4 * runs if max_repeats is None else max_repeats
    gate = ProbeGate(probe, clock=clock)
    run()  # the first run pays for page faults and caches
    kept: list[float] = []
    discarded = disturbed = 0
    while len(kept) < runs:
        before = gate.check()
        seconds = timed(run, clock)
        steady = gate.check() and before
        if not steady and discarded < left:
            discarded += 1
            continue
        disturbed += not steady
        kept.append(seconds)
    return Measurement(statistics.median(kept) * 1e3, len(kept), discarded, disturbed)


class Rounds(Generic[K]):
    """Several routines timed in turn, round by round, so that a disturbance of seconds meets all of them.

    A routine that says how many calls it made is measured per call. Each stands between two calls of a fixed probe. It
    counts as steady while both are within 10 % of the quiet machine's: the fastest quarter of all probes of all rounds.
    That also tells a disturbance which lasts for minutes.
    """

    def __init__(
        self, routines: Mapping[K, Callable[[], float | None]], probe: Callable[[], None], clock: Clock
    ) -> None:
        self._routines, self._probe, self._clock = routines, probe, clock
        self._samples: dict[K, list[tuple[float, float]]] = {key: [] for key in routines}  # slower probe, routine
        self._probes: list[float] = []
        for routine in routines.values():
            routine()  # the first call pays for page faults and caches

    def go(self, rounds: int) -> None:
        """Time every routine that many times more."""
        for _ in range(rounds):
            before = self._probed()
            for key, routine in self._routines.items():
                start = self._clock()
                calls = routine()
                seconds = (self._clock() - start) / (calls or 1)
                after = self._probed()
                self._samples[key].append((max(before, after), seconds))
                before = after

    @property
    def steady(self) -> int:
        """Steady calls of the routine that has the fewest."""
        return min((len(found) for found in self._steady().values()), default=0)

    def kept(self) -> dict[K, list[float]]:
        """Seconds of the steady calls; of a routine without any, of the half with the quieter probes."""
        return {key: steady or self._quieter_half(key) for key, steady in self._steady().items()}

    def measurements(self) -> dict[K, Measurement]:
        """Medians of what is kept."""
        steady = self._steady()
        return {
            key: Measurement(
                statistics.median(kept) * 1e3,
                len(kept),
                len(self._samples[key]) - len(kept),
                0 if steady[key] else len(kept),
            )
            for key, kept in self.kept().items()
        }

    def _quieter_half(self, key: K) -> list[float]:
        samples = sorted(self._samples[key])
        return [seconds for _, seconds in samples[: (len(samples) + 1) // 2]]

    def _probed(self) -> float:
        self._probes.append(timed(self._probe, self._clock))
        return self._probes[-1]

    def _steady(self) -> dict[K, list[float]]:
        quiet = sorted(self._probes)[len(self._probes) // 4] if self._probes else 0.0
        return {
            key: [seconds for probe, seconds in samples if probe <= (1 + TOLERANCE) * quiet]
            for key, samples in self._samples.items()
        }


def timed(function: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Seconds of one call."""
    start = clock()
    function()
    return clock() - start
