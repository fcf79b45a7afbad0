"""Plans that are to be compared, priced and measured together: on a shared machine, only what ran in turn compares."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from .sweep_run import plan_facts, refuse_too_large

if TYPE_CHECKING:
    from he_runtime import Plan
    from he_runtime.cost import CostTable
    from he_runtime.params import CkksParams

__all__ = ["GroupTimer"]

K = TypeVar("K", bound=Hashable)
_SHARES = 4  # calibrations, spread over the measurement
_MOST_ROUNDS = 3  # times the runs asked for, where the machine is disturbed


@dataclass
class GroupTimer:
    """Measures groups of plans in rounds, one call of each plan a round; single operations are timed between rounds.

    A table never sees a plan, only its parameters. `runs` steady calls per plan are aimed at; `seconds` is the
    calibration time per ring and chain.
    """

    backend: str
    runs: int
    seconds: float
    report: Callable[[str], None] = lambda message: None

    def records(self, plans: Mapping[K, Plan]) -> dict[K, dict[str, Any]]:
        """What is known of each plan: counts, price, and medians of processor time and of the wall clock.

        DoesNotFit when together they need more memory than is free.
        """
        from he_runtime import price
        from he_runtime.cost.measure import Rounds

        from .local import Local
        from .probe import fourier_probe

        params = {(p.params.degree, len(p.params.primes)): p.params for p in plans.values()}
        calibrations = [self._calibrated(params)]
        tables = _merged(calibrations)
        priced = {key: price(plan, tables[_ring(plan)]) for key, plan in plans.items()}
        refuse_too_large(*priced.values())
        locals_ = {key: Local(plan, self.backend) for key, plan in plans.items()}
        wall: dict[K, list[float]] = {key: [] for key in plans}
        routines = {key: _routine(local, plans[key], wall[key]) for key, local in locals_.items()}
        rounds = Rounds(routines, fourier_probe(), time.thread_time)
        done = 0
        while done < self.runs or (rounds.steady < self.runs and done < _MOST_ROUNDS * self.runs):
            self.report(f"round {done + 1}")
            share = max(1, self.runs // (_SHARES - 1))
            rounds.go(share)
            done += share
            if len(calibrations) < _SHARES:
                calibrations.append(self._calibrated(params))
        tables, found = _merged(calibrations), rounds.measurements()
        records = {}
        for key, plan in plans.items():
            facts = plan_facts(plan, price(plan, tables[_ring(plan)]))
            records[key] = facts | {
                "measured_ms": found[key].median_ms,
                "wall_ms": statistics.median(wall[key]) * 1e3,
                "ratio": facts["predicted_ms"] / found[key].median_ms,
                "runs": found[key].rounds,
                "discarded_runs": found[key].discarded,
                "disturbed_runs": found[key].disturbed,
                "counters_equal": locals_[key].executor.counters == plan.counts,
            }
        return records

    def _calibrated(self, params: Mapping[tuple[int, int], CkksParams]) -> dict[tuple[int, int], CostTable]:
        from he_runtime.cost.calibrate import calibrate

        self.report("calibrating")
        return {ring: calibrate(self.backend, p, seconds=self.seconds / _SHARES) for ring, p in params.items()}


def _ring(plan: Plan) -> tuple[int, int]:
    return plan.params.degree, len(plan.params.primes)


def _merged(calibrations: list[dict[tuple[int, int], CostTable]]) -> dict[tuple[int, int], CostTable]:
    """Per ring and operation the median of what the calibrations found."""
    merged = {}
    for ring, first in calibrations[0].items():
        found = [c[ring].entries for c in calibrations]
        entries = {
            key: replace(entry, seconds=statistics.median(e[key].seconds for e in found))
            for key, entry in first.entries.items()
        }
        merged[ring] = replace(first, entries=entries)
    return merged


def _routine(local: Any, plan: Plan, wall: list[float]) -> Callable[[], None]:
    import numpy as np

    encrypted = local.encrypt(np.random.default_rng(0).normal(size=plan.inputs[0].shape) * 0.5)

    def run() -> None:
        start = time.perf_counter()
        local.evaluate(encrypted)
        wall.append(time.perf_counter() - start)

    return run
