"""One point of a sweep: a sparse network planned in one packing, priced by single operations, and measured."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from he_runtime import CompressedModel, Plan
    from he_runtime.cost import CostReport, CostTable
    from he_runtime.params import CkksParams

__all__ = [
    "COLUMN",
    "DENSE",
    "DIAGONAL",
    "Point",
    "Study",
    "Timer",
    "agreement",
    "interleaved",
    "libraries",
    "model_facts",
    "plan_facts",
    "points_of",
    "refuse_too_large",
    "spearman",
]

DIAGONAL = "diagonal"  # one query per ciphertext
COLUMN = "column"  # one feature per ciphertext, a query per slot
DENSE = "dense"  # the pattern of a network with nothing pruned, which all patterns share
_INTERLEAVED = "interleaved-"


def interleaved(batch: int) -> str:
    """The packing with `batch` queries in every ciphertext."""
    return f"{_INTERLEAVED}{batch}"


@dataclass(frozen=True)
class Point:
    """What is planned: packing, sparsity pattern, and the share of weights that are zero."""

    packing: str
    pattern: str
    sparsity: float

    def matches(self, record: dict[str, Any]) -> bool:
        return all(record.get(name) == value for name, value in asdict(self).items())


def points_of(packings: Iterable[str], patterns: Sequence[str], sparsities: Iterable[float]) -> list[Point]:
    """Every combination, in ascending sparsity; without sparsity all patterns are one."""
    ordered = sorted(set(sparsities))
    return [
        Point(packing, pattern, sparsity)
        for packing in packings
        for sparsity in ordered
        for pattern in (patterns if sparsity else (DENSE,))
    ]


@dataclass
class Study:
    """A network with nothing pruned, from which sparse ones are made and planned.

    All are held to the error bound of the dense network, `max_error`, and their patterns follow its packing on the ring
    `degree` that its plan needs. `wish` is passed on to `compile`.
    """

    model: CompressedModel
    seed: int
    max_error: float
    degree: int
    backend: str = "tenseal"
    wish: Mapping[str, Any] = field(default_factory=dict)
    _sparse: dict[tuple[str, float], CompressedModel] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: CompressedModel, seed: int = 0, backend: str = "tenseal", **wish: Any) -> Study:
        """Plans the dense network once, for a back end. Raises DoesNotFit where no ring holds it."""
        from he_runtime import compile
        from he_runtime.cost import load_default
        from he_runtime.wish import error_budget

        budget = error_budget(model)
        planned = compile(model, max_error=budget, table=load_default(backend), **wish)
        return cls(model, seed, budget, planned.params.degree, backend, wish)

    def sparse(self, point: Point) -> CompressedModel:
        """The network of a point; the last one is kept."""
        from he_runtime.cost import load_default
        from model_prep.packing.patterns import sparsify

        if point.pattern == DENSE:
            return self.model
        key = (point.pattern, point.sparsity)
        if key not in self._sparse:
            density = 1 - point.sparsity
            options = {"seed": self.seed, "degree": self.degree}
            table = load_default(self.backend)
            self._sparse = {key: sparsify(self.model, point.pattern, density, **options, table=table)}
        return self._sparse[key]

    def plan(self, point: Point) -> Plan:
        """The plan of a point on the smallest ring from `degree` on. Raises DoesNotFit where there is none."""
        from he_runtime import compile
        from he_runtime.compile import DEGREES
        from he_runtime.cost import load_default
        from he_runtime.errors import DoesNotFit

        model, why = self.sparse(point), ""
        for degree in (d for d in DEGREES if d >= self.degree):
            try:
                batch = _batch(point.packing, degree // 2)
                table = load_default(self.backend)
                return compile(
                    model, degrees=(degree,), max_error=self.max_error, batch=batch, table=table, **self.wish
                )
            except DoesNotFit as error:
                why = why or error.message
        raise DoesNotFit(why)


def _batch(packing: str, slots: int) -> int:
    if packing.startswith(_INTERLEAVED):
        return int(packing.removeprefix(_INTERLEAVED))
    return {DIAGONAL: 1, COLUMN: slots}[packing]


@dataclass
class Timer:
    """Prices and measures plans on one back end; a table of single operations is measured once per ring and chain.

    No table ever sees a plan, only its parameters. `measure` False prices by `table` alone, without a back end.
    """

    backend: str
    runs: int
    seconds: float
    measure: bool = True
    table: CostTable | None = None
    report: Callable[[str], None] = lambda message: None
    _tables: dict[tuple[int, int], CostTable] = field(default_factory=dict, repr=False)

    def record(self, study: Study, point: Point) -> dict[str, Any]:
        """All that is known of a point afterwards, as plain data.

        `fits` False means that it cannot be planned; without `measured_ms` memory was short. Both say `why`.
        """
        from he_runtime.errors import DoesNotFit

        self.report("planning")
        try:
            plan = study.plan(point)
        except DoesNotFit as error:
            return asdict(point) | {"fits": False, "why": error.message}
        return asdict(point) | {"fits": True} | model_facts(study.sparse(point)) | self.of_plan(plan)

    def of_plan(self, plan: Plan) -> dict[str, Any]:
        """What is known of a plan: its counts, its price, and, if it is measured, how long it took."""
        from he_runtime import price

        self.report("calibrating")
        priced = price(plan, self._table_for(plan.params))
        known = plan_facts(plan, priced)
        if self.measure:
            self.report("measuring")
            known |= self._measured_if_it_fits(plan, priced)
        return known

    def _table_for(self, params: CkksParams) -> CostTable:
        from he_runtime.cost.calibrate import calibrate

        if self.table is not None:
            return self.table
        key = (params.degree, len(params.primes))
        if key not in self._tables:
            self._tables[key] = calibrate(self.backend, params, seconds=self.seconds)
        return self._tables[key]

    def _measured_if_it_fits(self, plan: Plan, priced: CostReport) -> dict[str, Any]:
        from he_runtime.errors import DoesNotFit

        try:
            refuse_too_large(plan)
        except DoesNotFit as error:
            return {"why": error.message}
        return self._measured(plan, priced)

    def _measured(self, plan: Plan, priced: CostReport) -> dict[str, Any]:
        """Median over `runs` of this thread's processor time, as in calibration, and of the wall clock."""
        import numpy as np

        from he_runtime.cost.calibrate import clock_of
        from he_runtime.cost.measure import measure_latency

        from .local import Local
        from .probe import fourier_probe

        local = Local(plan, self.backend)
        encrypted = local.encrypt(np.random.default_rng(0).normal(size=plan.inputs[0].shape) * 0.5)
        wall: list[float] = []

        def run() -> None:
            start = time.perf_counter()
            local.evaluate(encrypted)
            wall.append(time.perf_counter() - start)

        found = measure_latency(run, fourier_probe(), self.runs, clock=clock_of(self.backend))
        return {
            "measured_ms": found.median_ms,
            "wall_ms": statistics.median(wall) * 1e3,
            "ratio": priced.latency_ms / found.median_ms,
            "runs": found.rounds,
            "disturbed_runs": found.disturbed,
            "counters_equal": local.executor.counters == plan.counts_on(self.backend),
        }


def model_facts(model: CompressedModel) -> dict[str, Any]:
    """What a record says of a sparse network."""
    import numpy as np

    from model_prep.packing.lines import weight_keys

    weights = [model.arrays[key] for key in weight_keys(model)]
    nonzeros, size = sum(int(np.count_nonzero(w)) for w in weights), sum(w.size for w in weights)
    pattern = model.metadata.get("pattern", {})
    return {
        "nonzeros": nonzeros,
        "actual_sparsity": 1 - nonzeros / size,
        "kept_energy": float(pattern.get("kept_energy", 1.0)),
    }


def plan_facts(plan: Plan, priced: CostReport) -> dict[str, Any]:
    """What a record says of a plan before it runs."""
    return {
        "N": plan.params.degree,
        "log2_qp": plan.params.log2_qp,
        "primes": len(plan.params.primes),
        "batch": plan.batch,
        "ciphertexts_in": sum(len(port.values) for port in plan.inputs),
        "rotations": priced.rotations,
        "products": priced.products,
        "keys": len(plan.keys.requests),
        "key_bytes": priced.key_bytes,
        "error_bound": plan.error_bound,
        "predicted_ms": priced.latency_ms,
        "predicted_low_ms": priced.low_ms,
        "predicted_high_ms": priced.high_ms,
    }


def refuse_too_large(*plans: Plan) -> None:
    """DoesNotFit when these plans, loaded at once, would take more than four fifths of the free memory."""
    from he_runtime.cost.memory import memory
    from he_runtime.errors import DoesNotFit

    need = sum(memory(plan).total for plan in plans)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > 0.8 * free:
        raise DoesNotFit(
            f"cannot measure: got {free / 1e9:.1f} GB of free memory, need {need / 1e9:.1f} GB; try a machine with more"
        )


def agreement(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How predictions compare with measurements: count, mean absolute error, rank correlation (None below two)."""
    pairs = [(r["predicted_ms"], r["measured_ms"]) for r in records if r.get("measured_ms")]
    if not pairs:
        return {"n": 0, "mape": None, "spearman": None}
    errors = [abs(predicted / measured - 1) for predicted, measured in pairs]
    return {"n": len(pairs), "mape": statistics.fmean(errors), "spearman": spearman(pairs)}


def spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Rank correlation, ties at their mean rank; None where it is not defined (fewer than two distinct values)."""
    from scipy.stats import rankdata

    if min(len({pair[side] for pair in pairs}) for side in (0, 1)) < 2:
        return None
    left, right = (rankdata([pair[side] for pair in pairs]) for side in (0, 1))
    value = float(statistics.correlation(left.tolist(), right.tolist()))
    return value if math.isfinite(value) else None


def libraries(backend: str) -> dict[str, str]:
    """Versions of what a measurement depends on."""
    from he_runtime.cost.environment import here

    return dict(here((backend, "numpy", "python")).libraries)
