"""How many samples should share a ciphertext: from one input per ciphertext to one feature per ciphertext.

With b samples interleaved, the same program serves b at once on lane groups that are b times fewer: nearly free while
tensors still fit, then more ciphertexts, until with one feature per ciphertext no rotation is left and the price follows
the non-zero weights (CryptoNets, ICML'16, packs so; LoLA, ICML'19, section 4, names the trade). Every power of two
between is a candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .backends import default_backend
from .compile import DEGREES, compile, lower
from .cost import CostTable, load_default, price
from .errors import DoesNotFit, ParameterError
from .lower.costs import Costs
from .lower.integers import integer_steps
from .model import CompressedModel
from .plan import Plan
from .wish import error_budget

__all__ = ["BatchOption", "BatchPlan", "plan_batch"]

_FINALISTS = 3


@dataclass(frozen=True)
class BatchOption:
    """One run serves `batch` samples and takes `latency_ms` (estimated from packing alone unless `planned`)."""

    batch: int
    degree: int
    latency_ms: float
    planned: bool

    def total_ms(self, samples: int) -> float:
        """For a number of samples, whole runs."""
        return -(-samples // self.batch) * self.latency_ms


@dataclass(frozen=True)
class BatchPlan:
    """The cheapest plan for `samples` inputs, the options it was chosen from, and where it overtakes single queries.

    `crossover` is the fewest samples for which `plan` beats one run of the single-query plan per sample; None when it
    is that plan.
    """

    samples: int
    plan: Plan
    chosen: BatchOption
    options: tuple[BatchOption, ...]
    crossover: int | None


def plan_batch(
    model: CompressedModel,
    samples: int,
    *,
    degrees: Sequence[int] = DEGREES,
    max_error: float | None = None,
    margin_share: float = 0.25,
    table: CostTable | None = None,
    max_bytes: int | None = None,
    max_key_bytes: int | None = None,
) -> BatchPlan:
    """Plan for throughput: the least total time for `samples` inputs by `table` (the shipped one by default).

    All batch sizes are priced from their packing; the best few, and the single query, are planned in full on the
    smallest ring that holds the error budget. DoesNotFit when no single query can be planned.
    """
    if samples < 1:
        raise ParameterError(f"cannot plan for {samples} samples: need at least 1")
    table = table or load_default(default_backend())
    budget = error_budget(model, max_error, margin_share)
    single = compile(
        model, degrees=degrees, max_error=budget, table=table, max_bytes=max_bytes, max_key_bytes=max_key_bytes
    )
    degree = single.params.degree
    options = {1: BatchOption(1, degree, price(single, table).latency_ms, planned=True)}
    plans = {1: single}
    smaller = _integer_degrees(model, [d for d in degrees if d < degree], table)
    rings = {b: 2 * b if 2 * b in smaller else degree for b in _sizes(samples, degree // 2)}
    estimates = [o for b, ring in rings.items() if (o := _estimate(model, ring, b, table)) is not None]
    options.update({o.batch: o for o in estimates})
    for option in sorted(estimates, key=lambda o: o.total_ms(samples))[:_FINALISTS]:
        try:
            plan = compile(
                model,
                degrees=[d for d in degrees if d >= rings[option.batch]],
                max_error=budget,
                batch=option.batch,
                table=table,
                max_bytes=max_bytes,
                max_key_bytes=max_key_bytes,
            )
        except DoesNotFit:
            del options[option.batch]
            continue
        plans[option.batch] = plan
        options[option.batch] = BatchOption(option.batch, plan.params.degree, price(plan, table).latency_ms, True)
    best = min((o for o in options.values() if o.planned), key=lambda o: (o.total_ms(samples), o.batch))
    crossover = int(best.latency_ms // options[1].latency_ms) + 1 if best.batch > 1 else None
    return BatchPlan(samples, plans[best.batch], best, tuple(options[b] for b in sorted(options)), crossover)


def _sizes(samples: int, slots: int) -> list[int]:
    """Powers of two from 2 to the first that holds all samples."""
    sizes, batch = [], 1
    while batch < min(samples, slots):
        batch *= 2
        sizes.append(batch)
    return sizes


def _integer_degrees(model: CompressedModel, degrees: Sequence[int], table: CostTable) -> list[int]:
    """Rings below that of a single query that may do, because integer weights need few bits in column packing."""
    found = []
    for degree in degrees:
        try:
            program, _ = lower(model, degree, degree // 2, table)
        except DoesNotFit:
            continue
        if integer_steps(program) is not None:
            found.append(degree)
    return found


def _estimate(model: CompressedModel, degree: int, batch: int, table: CostTable) -> BatchOption | None:
    try:
        program, _ = lower(model, degree, batch, table)
    except DoesNotFit:
        return None
    costs = Costs(table, degree)
    return BatchOption(batch, degree, 1e3 * costs.counted(program.leaf_counts(costs.fused)), planned=False)
