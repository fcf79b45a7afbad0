"""Plans that are to be compared, priced and measured together: on a shared machine, only what ran in turn compares."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from .kernel_threads import one_thread
from .sweep_run import plan_facts, refuse_too_large

if TYPE_CHECKING:
    from he_runtime import Plan
    from he_runtime.cost import CostTable
    from he_runtime.cost.measure import Rounds

__all__ = ["GroupTimer"]

K = TypeVar("K", bound=Hashable)
_Ring = tuple[int, int, bool]  # N, number of primes, and whether some are long: what an operation's time depends on
_STEP = 2  # rounds between two looks at how many were steady
_MOST_ROUNDS = 2  # times the runs asked for, where the machine is disturbed


@dataclass
class GroupTimer:
    """Measures groups of plans in rounds: each plan once, and each single operation of their rings a few times.

    A table never sees a plan, only its parameters. `runs` steady calls per plan are aimed at.
    """

    backend: str
    runs: int
    report: Callable[[str], None] = lambda message: None

    def records(self, plans: Mapping[K, Plan]) -> dict[K, dict[str, Any]]:
        """What is known of each plan, on one thread: counts, price, and medians of processor time and of the wall clock.

        DoesNotFit when together they need more memory than is free.
        """
        with one_thread(self.backend):
            return self._records(plans)

    def _records(self, plans: Mapping[K, Plan]) -> dict[K, dict[str, Any]]:
        from he_runtime import price

        from .local import Local

        refuse_too_large(*plans.values())
        self.report("encoding")
        operations = self._operations(plans)
        locals_ = {key: Local(plan, self.backend) for key, plan in plans.items()}
        wall: dict[K, list[float]] = {key: [] for key in plans}
        routines = {("plan", key): _routine(locals_[key], plans[key], wall[key]) for key in plans}
        rounds = self._timed(routines | {("operation", key): run for key, run in operations.items()})
        tables, found = self._tables(rounds), rounds.measurements()
        records = {}
        for key, plan in plans.items():
            measured = found["plan", key]
            facts = plan_facts(plan, price(plan, tables[_ring(plan)]))
            records[key] = facts | {
                "measured_ms": measured.median_ms,
                "wall_ms": statistics.median(wall[key]) * 1e3,
                "ratio": facts["predicted_ms"] / measured.median_ms,
                "runs": measured.rounds,
                "discarded_runs": measured.discarded,
                "disturbed_runs": measured.disturbed,
                "counters_equal": locals_[key].executor.counters == plan.counts_on(self.backend),
            }
        return records

    def _operations(self, plans: Mapping[K, Plan]) -> dict[tuple[_Ring, Any], Callable[[], float]]:
        from he_runtime.cost.calibrate import single_operations

        params = {_ring(plan): plan.params for plan in plans.values()}
        return {
            (ring, leaf): found
            for ring, p in params.items()
            for leaf, found in single_operations(self.backend, p).items()
        }

    def _timed(self, routines: Mapping[Any, Callable[[], Any]]) -> Rounds[Any]:
        from he_runtime.cost.calibrate import clock_of
        from he_runtime.cost.measure import Rounds

        from .probe import fourier_probe

        rounds: Rounds[Any] = Rounds(routines, fourier_probe(), clock_of(self.backend))
        done = 0
        while done < self.runs or (rounds.steady < self.runs and done < _MOST_ROUNDS * self.runs):
            self.report(f"round {done + 1}")
            rounds.go(min(_STEP, self.runs))
            done += min(_STEP, self.runs)
        return rounds

    def _tables(self, rounds: Rounds[Any]) -> dict[_Ring, CostTable]:
        from he_runtime.cost.calibrate import measured_table

        samples: dict[_Ring, dict[Any, list[float]]] = {}
        for (kind, key), seconds in rounds.kept().items():
            if kind == "operation":
                ring, leaf = key
                samples.setdefault(ring, {})[leaf] = seconds
        return {ring: measured_table(self.backend, found) for ring, found in samples.items()}


def _ring(plan: Plan) -> _Ring:
    from he_runtime.cost.formulas import wide_share

    p = plan.params
    return p.degree, len(p.primes), wide_share((*p.primes, *p.special)) > 0


def _routine(local: Any, plan: Plan, wall: list[float]) -> Callable[[], None]:
    import numpy as np

    encrypted = local.encrypt(np.random.default_rng(0).normal(size=plan.inputs[0].shape) * 0.5)

    def run() -> None:
        start = time.perf_counter()
        local.evaluate(encrypted)
        wall.append(time.perf_counter() - start)

    return run
