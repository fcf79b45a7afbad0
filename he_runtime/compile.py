"""compile(model) -> Plan: stages, levels, packing, parameters, ops, checks, in that order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from .errors import DoesNotFit, ParameterError
from .lower.constants import fold_constants
from .lower.emission import VectorPool
from .lower.emit import Program, Scales, Values, emit
from .lower.levels import stage_levels
from .lower.packing import choose_packing
from .lower.stages import build_stages
from .model import CompressedModel
from .noise import encoding_error, quietest, slot_variance
from .params import MAX_LOG2_QP, CkksParams, find_primes
from .plan import Plan, Port, verify
from .plan.verify import first_overflow
from .reference import forward_all

__all__ = ["DEGREES", "compile"]

DEGREES = (4096, 8192, 16384, 32768)
_MAX_PRIME_BITS = 59.5  # SEAL allows 60; half a bit keeps the search below it
_MIN_PRIME_BITS = 24.0
_KEY_SWITCH_OVER_PRODUCT = 14.0  # rotation over plaintext product at one limb; grows with the limbs
_HOPELESS = 64.0  # the fine search gains a few bits at most
_HEADROOM_BITS = 1.1  # one for the sign; a tenth because found primes lie just below the bits asked for


@dataclass(frozen=True)
class _Problem:
    """What is fixed for one ring degree while scales are searched."""

    model: CompressedModel
    program: Program
    degree: int
    depth: int
    magnitudes: dict[str, float]
    budget: float
    pool: VectorPool = field(default_factory=VectorPool)


_Candidate = tuple[Plan, dict[str, Values]]  # a plan, and the values of each tensor in it


def compile(
    model: CompressedModel,
    *,
    degrees: tuple[int, ...] = DEGREES,
    max_error: float | None = None,
    margin_share: float = 0.25,
    batch: int = 1,
) -> Plan:
    """Plan `model` at the least latency: the smallest ring whose predicted error holds the budget.

    `batch` samples (a power of two) are interleaved in every ciphertext; with as many samples as slots there is one
    feature per ciphertext and no rotation at all.

    The budget bounds six predicted sigmas: `max_error` in output units, or by default `margin_share` of the model's
    median margin between the two largest outputs. Among the prime chains of a ring the one with the smallest
    predicted error is taken, since SEAL's cost depends on the number of primes only.

    Raises DoesNotFit naming what is missing, or ModelError for an unsupported op.
    """
    budget = _budget(model, max_error, margin_share)
    reasons = []
    for degree in degrees:
        try:
            plan = _plan_for_degree(model, degree, budget, batch)
        except (DoesNotFit, ParameterError) as error:
            reasons.append(f"N={degree}: {error.message}")
            continue
        if plan.error_bound <= budget:
            return verify(plan)
        reasons.append(f"N={degree}: the error bound is {plan.error_bound:.3g}, the budget {budget:.3g}")
    raise DoesNotFit(
        f"cannot plan model {model.name!r}: no ring degree holds it ({'; '.join(reasons)}); try fewer activations"
    )


def _budget(model: CompressedModel, max_error: float | None, share: float) -> float:
    if max_error is not None:
        return max_error
    margin = model.metadata.get("median_margin")
    if margin is None:
        low, high = model.ranges.get(model.output.node, (-1.0, 1.0))
        margin = 0.1 * max(abs(low), abs(high))
    return share * float(margin)


def _plan_for_degree(model: CompressedModel, degree: int, budget: float, batch: int) -> Plan:
    slots = degree // 2 // batch  # lane groups: what one sample has of a ciphertext
    if slots < 1:
        raise DoesNotFit(f"a batch of {batch} does not fit {degree // 2} slots")
    stages, constants = fold_constants(build_stages(model, slots))
    levels = stage_levels(stages)
    depth = max(levels.values())
    _room(model, degree, depth)
    source = model.input.name
    packing = choose_packing(stages, source, model.input.shape, slots, levels, _stage_cost)
    magnitudes = {name: max(abs(low), abs(high)) for name, (low, high) in model.ranges.items()}
    program = Program(stages, constants, packing, source, batch)
    return _best_scales(_Problem(model, program, degree, depth, magnitudes, budget))


def _room(model: CompressedModel, degree: int, depth: int) -> None:
    """Refuse early when even the smallest primes cannot give the levels."""
    if (depth + 2) * _MIN_PRIME_BITS > MAX_LOG2_QP[degree]:
        raise DoesNotFit(f"model {model.name!r} needs {depth} levels, which do not fit {MAX_LOG2_QP[degree]} bits")


def _stage_cost(rotations: int, products: int, level: int) -> float:
    """Relative price on the SEAL gadget: a key switch costs (l + 1)(l + 2) transforms at l live primes."""
    limbs = level + 1
    return rotations * (limbs + 1) * limbs + products * 2 * limbs / _KEY_SWITCH_OVER_PRODUCT


def _best_scales(problem: _Problem) -> Plan:
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


def _try(problem: _Problem, delta_bits: float, last_bits: float) -> _Candidate | None:
    output = problem.magnitudes.get(problem.model.output.node, 1.0)
    first = delta_bits + last_bits + math.log2(max(2 * output, 1.0)) + _HEADROOM_BITS
    cap = MAX_LOG2_QP[problem.degree]
    # The special prime is at least as large as every live one, so that key switching adds little.
    rest = min(_MAX_PRIME_BITS, (cap - first) / (problem.depth + 1)) if problem.depth else _MAX_PRIME_BITS
    special = max(rest, first)
    if problem.depth and special > rest:
        rest = min(_MAX_PRIME_BITS, (cap - 2 * first) / problem.depth)
    if not _MIN_PRIME_BITS <= first <= _MAX_PRIME_BITS or rest < _MIN_PRIME_BITS or special > _MAX_PRIME_BITS:
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


def _assemble(problem: _Problem, params: CkksParams, scales: Scales) -> _Candidate:
    model, packing = problem.model, problem.program.packing
    source, target = model.input.name, model.output.node
    e, tensors, layers = emit(problem.program, params, scales, problem.magnitudes, problem.pool)
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
    known = _per_slot(problem, tensors, _mean_squares(problem))
    return quietest(plan, slot_variance(plan, known)), tensors


def _predicted(problem: _Problem, plan: Plan, tensors: Mapping[str, Values]) -> Plan:
    """The plan with the error predicted along single calibration samples, where the model kept any."""
    samples = problem.model.mean_square("samples")
    if samples is None:
        return plan
    squares = {name: values**2 for name, values in forward_all(problem.model, samples).items()}
    whole = replace(plan.outputs[0], slot_map=problem.program.packing.layouts[problem.model.output.node].slot_map)
    plan = replace(plan, outputs=(whole,))
    random = slot_variance(plan, _per_slot(problem, tensors, squares), encoding=False)
    inputs = _per_slot(
        problem, {problem.model.input.name: tensors[problem.model.input.name]}, {problem.model.input.name: samples}
    )
    return quietest(plan, random + encoding_error(plan, list(inputs.values())))


def _mean_squares(problem: _Problem) -> dict[str, npt.NDArray[np.float64]]:
    """Calibrated mean squares per tensor, (1, *shape); a third of the squared magnitude where there are none."""
    found = {}
    for name in (problem.model.input.name, *(s.name for s in problem.program.stages)):
        stats = problem.model.mean_square(name)
        if stats is None:
            stats = np.full(problem.model.shape_of(name), problem.magnitudes.get(name, 1.0) ** 2 / 3)
        found[name] = stats[None]
    return found


def _per_slot(
    problem: _Problem, tensors: Mapping[str, Values], squares: Mapping[str, npt.NDArray[np.float64]]
) -> dict[int, npt.NDArray[np.float64]]:
    """Squares per element (samples, *shape) -> per slot (samples, slots), by value of the plan."""
    known: dict[int, npt.NDArray[np.float64]] = {}
    for name, values in tensors.items():
        is_input = name == problem.model.input.name
        packing = problem.program.packing
        slot_map = (packing.input_layout if is_input else packing.layouts[name]).slot_map
        flat = squares[name].reshape(len(squares[name]), -1)
        padded = np.concatenate([flat, np.zeros((len(flat), 1))], axis=1)
        known.update({value: padded[:, slot_map[k]] for k, value in values.items()})
    return known
