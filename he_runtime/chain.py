"""The prime chain and the scales of one program on one ring: a search for the least predicted error.

SEAL's cost depends on the number of primes only, so for a given ring and depth the whole budget of log2(QP) is free
precision. The chain follows from two scales: Delta, that of tensors at rest, and that of the last layer's operands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .errors import DoesNotFit
from .lower.emission import VectorPool
from .lower.emit import Program, Scales, Values, emit
from .lower.lowering import Lowering, Note
from .lower.statistics import Statistics
from .model import CompressedModel
from .noise import encoding_error, quietest, slot_variance
from .params import MAX_LOG2_QP, CkksParams, find_primes
from .plan import Plan, Port
from .plan.verify import first_overflow

__all__ = ["MIN_PRIME_BITS", "Problem", "best_chain"]

MIN_PRIME_BITS = 24.0
_MAX_PRIME_BITS = 59.5  # SEAL allows 60; half a bit keeps the search below it
_HOPELESS = 64.0  # the fine search gains a few bits at most
_HEADROOM_BITS = 1.1  # one for the sign; a tenth because found primes lie just below the bits asked for


@dataclass(frozen=True)
class Problem:
    """What is fixed for one ring degree while scales are searched. `budget` bounds six sigmas."""

    model: CompressedModel
    program: Program
    degree: int
    depth: int
    budget: float
    pool: VectorPool = field(default_factory=VectorPool)

    @cached_property
    def statistics(self) -> Statistics:
        return Statistics(self.model, tuple(self.program.stages))

    @property
    def magnitudes(self) -> Mapping[str, float]:
        """The largest value that calibration saw of each tensor."""
        return self.statistics.magnitudes


Floats = npt.NDArray[np.float64]
_Candidate = tuple[Plan, Lowering]  # a plan, and what its values hold


def best_chain(problem: Problem) -> Plan:
    """Pattern search over (Delta, last scale) in bits; the rest of the chain follows from the two.

    A coarse grid finds the basin (the error has one: fresh noise on one side, short primes on the other), then
    neighbours at halving distances are tried until none is better.
    """
    tried: dict[tuple[float, float], _Candidate | None] = {}

    def error(point: tuple[float, float]) -> float:
        if point not in tried:
            tried[point] = _try(problem, *point)
        candidate = tried[point]
        return math.inf if candidate is None else candidate[0].sigma

    best = min(((float(d), float(s)) for d in range(22, 46, 4) for s in range(8, 33, 6)), key=error)
    if 6 * error(best) > _HOPELESS * problem.budget:
        candidate = tried[best]
        if candidate is not None:
            return candidate[0]
    for step in (2.0, 1.0):
        while True:
            moves = [(best[0] + i, best[1] + j) for i in (-step, 0, step) for j in (-step, 0, step)]
            better = min(moves, key=error)
            if error(better) >= error(best):
                break
            best = better
    final = tried[best]
    if final is None:
        raise DoesNotFit(
            f"no prime chain under {MAX_LOG2_QP[problem.degree]} bits gives {problem.depth} levels with room for the ranges"
        )
    return _predicted(problem, *final)


def _try(problem: Problem, delta_bits: float, last_bits: float) -> _Candidate | None:
    output = problem.magnitudes.get(problem.model.output.node, 1.0)
    first = delta_bits + last_bits + math.log2(max(2 * output, 1.0)) + _HEADROOM_BITS
    cap = MAX_LOG2_QP[problem.degree]
    # The special prime is at least as large as every live one, so that key switching adds little.
    rest = min(_MAX_PRIME_BITS, (cap - first) / (problem.depth + 1)) if problem.depth else _MAX_PRIME_BITS
    special = max(rest, first)
    if problem.depth and special > rest:
        rest = min(_MAX_PRIME_BITS, (cap - 2 * first) / problem.depth)
    if not MIN_PRIME_BITS <= first <= _MAX_PRIME_BITS or rest < MIN_PRIME_BITS or special > _MAX_PRIME_BITS:
        return None
    if first + rest * problem.depth + special > cap + 1e-6 or (problem.depth and rest - delta_bits < 12):
        return None
    primes = find_primes(problem.degree, [special, first, *[rest] * problem.depth])
    params = CkksParams(problem.degree, tuple(primes[1:]), (primes[0],))
    try:
        candidate = _assemble(problem, params, Scales(2.0**delta_bits, 2.0**last_bits))
    except DoesNotFit:
        return None
    return None if first_overflow(candidate[0]) else candidate


def _assemble(problem: Problem, params: CkksParams, scales: Scales) -> _Candidate:
    model, packing = problem.model, problem.program.packing
    source, target = model.input.name, model.output.node
    low, layers = emit(problem.program, params, scales, problem.magnitudes, problem.pool)
    e, tensors = low.emission, low.tensors
    plan = Plan(
        model_name=model.name,
        model_digest=model.digest,
        params=params,
        ops=tuple(e.ops),
        values=tuple(e.values),
        vectors=tuple(e.pool.vectors),
        plaintexts=tuple(e.plaintexts),
        inputs=(Port(source, model.input.shape, tuple(tensors[source].values()), packing.input_layout.slot_map),),
        outputs=(
            Port(target, model.shape_of(target), tuple(tensors[target].values()), packing.layouts[target].slot_map),
        ),
        layers=layers,
        batch=problem.program.batch,
        client={
            "mean": list(model.input.mean),
            "std": list(model.input.std),
            "low": model.input.low,
            "high": model.input.high,
            "labels": list(model.output.labels),
            "post_processing": model.output.post_processing,
        },
    )
    return quietest(plan, slot_variance(plan, *_knowledge(problem, low, mean=True))), low


def _predicted(problem: Problem, plan: Plan, low: Lowering) -> Plan:
    """The plan with the error predicted along single calibration samples, where the model kept any."""
    samples = problem.statistics.inputs
    if samples is None:
        return plan
    whole = replace(plan.outputs[0], slot_map=problem.program.packing.layouts[problem.model.output.node].slot_map)
    plan = replace(plan, outputs=(whole,))
    random = slot_variance(plan, *_knowledge(problem, low, mean=False), encoding=False)
    name = problem.model.input.name
    inputs = _per_slot(problem, {name: low.tensors[name]}, {name: samples})
    return quietest(plan, random + encoding_error(plan, list(inputs.values())))


def _knowledge(problem: Problem, low: Lowering, mean: bool) -> tuple[dict[int, Floats], dict[int, tuple[int, Floats]]]:
    """Per value and slot: squares of what is known, and the squared derivatives by which polynomials carry errors on."""
    facts = problem.statistics
    known = _per_slot(problem, low.tensors, facts.mean_squares if mean else facts.squares)
    inside: dict[tuple[str, str], tuple[Note, Values]] = {}
    for value, note in low.notes.items():
        inside.setdefault((note.stage, note.label), (note, {}))[1][note.index] = value
    for note, values in inside.values():
        known |= _per_slot(problem, {note.stage: values}, {note.stage: facts.inside(note, mean)})
    results: dict[str, Values] = {}
    for value, by in low.carried.items():
        results.setdefault(by.stage, {})[by.index] = value
    slopes = _per_slot(problem, results, {name: facts.slopes(name, mean) for name in results})
    return known, {value: (low.carried[value].mapped, slope) for value, slope in slopes.items()}


def _per_slot(problem: Problem, tensors: Mapping[str, Values], facts: Mapping[str, Floats]) -> dict[int, Floats]:
    """What is known per element (samples, *shape) -> per slot (samples, slots), zero where unused, by value of the plan."""
    known: dict[int, Floats] = {}
    for name, values in tensors.items():
        is_input = name == problem.model.input.name
        packing = problem.program.packing
        slot_map = (packing.input_layout if is_input else packing.layouts[name]).slot_map
        flat = facts[name].reshape(len(facts[name]), -1)
        padded = np.concatenate([flat, np.zeros((len(flat), 1))], axis=1)
        known.update({value: padded[:, slot_map[k]] for k, value in values.items()})
    return known
