"""The prime chain and the scales of one program on one ring: a search for the least predicted error.

SEAL's cost depends on the number of primes only, so for a given ring and depth the whole budget of log2(QP) is free
precision. The chain follows from a few scales: Delta, what the lowest levels have more than it, and that of the last
layer's operands (docs/decisions/0016).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import permutations

from .candidate import MAX_PRIME_BITS, Candidate, Problem, assemble, predicted
from .errors import DoesNotFit
from .lower.program import Scales
from .params import DEGREES, MAX_LOG2_QP, CkksParams, find_primes
from .plan import Plan
from .plan.verify import first_overflow
from .refusals import OutOfRange, too_deep, too_wide_output

__all__ = ["HEADROOM_BITS", "LEAST_LEVEL_BITS", "MAX_PRIME_BITS", "MIN_PRIME_BITS", "best_chain"]

MIN_PRIME_BITS = 24.0
_HOPELESS = 8.0  # the fine search gains a bit or two
_NEAR = 2.0  # and moves along two axes at once another fifth
_WORTHWHILE = 0.98  # of the error: a smaller gain is no reason to go on, but ten of a few hundredths are
_LEAST_DROP_BITS = 12.0  # what a prime of a rescale has more than Delta: the operands' scale
_LEAST_DELTA_BITS = 22
LEAST_LEVEL_BITS = _LEAST_DELTA_BITS + _LEAST_DROP_BITS
HEADROOM_BITS = 1.1  # one for the sign; a tenth because found primes lie just below the bits asked for
# Bits of Delta, of the last layer's operands, of what the special prime has more than the others, and of what tensors on
# level 0, 1, ... have more than Delta.
_Point = tuple[int, ...]
_SPECIAL = 2  # index of the special prime's axis
_MAX_RISES = 4  # levels with a scale of their own
_COEFFICIENT_BITS = 16  # of a quadratic's
_COEFFICIENT_BITS_EACH = 12  # the same per prime, where rescales take several
_STARTS: tuple[_Point, ...] = tuple(
    sorted(
        ((d, s, 0) for d in range(_LEAST_DELTA_BITS, 46, 4) for s in range(8, 33, 6)),
        key=lambda p: abs(p[0] - _LEAST_DELTA_BITS) + abs(p[1] - 14),
    )
)


def best_chain(problem: Problem) -> Plan:
    """Pattern search over the scales in bits; the primes follow from them. DoesNotFit where no point fits.

    The error has one basin: fresh noise on one side, short primes on the other. From the first point of a coarse grid that
    fits, neighbours along one axis after the other are tried, at halving distances, until none is better; where that is
    beyond the budget, bits are also moved from one axis to another.
    """
    search = _Search(problem)
    level = (0,) * _rises(problem)
    best = next((p for s in _STARTS if search.error(p := (*s, *level)) < math.inf), None)
    if best is None:
        raise _refusal(problem)
    best = search.descend(best, 4)
    if search.error(best) > _HOPELESS * problem.budget:
        # Where no larger ring is left, the refusal names a bound that would do: that takes the real one.
        coarse = search.at(best)
        return predicted(problem, *coarse) if problem.degree == DEGREES[-1] else coarse[0]
    for step in (2, 1):
        best = search.descend(best, step)
    plan = predicted(problem, *search.at(best))
    if not problem.budget < plan.error_bound <= _NEAR * problem.budget:
        return plan
    jointly = best
    for step in (8, 4, 2, 1):
        jointly = search.descend(jointly, step, jointly=True)
    other = predicted(problem, *search.at(jointly)) if jointly != best else plan
    return min(plan, other, key=lambda p: p.error_bound)


class _Search:
    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._tried: dict[_Point, float] = {}  # errors alone: fifty plans of a batch are a million objects
        # A longer special prime quiets the lanes that a batch cannot avoid; a single query reads elsewhere.
        count = _SPECIAL + 1 + _rises(problem)
        self.axes = [k for k in range(count) if k != _SPECIAL or problem.program.batch > 1]

    def error(self, point: _Point) -> float:
        """The predicted bound; infinite where nothing fits."""
        if point not in self._tried:
            candidate = _try(self.problem, point)
            self._tried[point] = math.inf if candidate is None else candidate[0].error_bound
        return self._tried[point]

    def at(self, point: _Point) -> Candidate:
        """The candidate of a point that fits, made again."""
        candidate = _try(self.problem, point)
        assert candidate is not None
        return candidate

    def descend(self, best: _Point, step: int, *, jointly: bool = False) -> _Point:
        """The best point reached by moves of that many bits along one axis after the other, or from one axis to another."""
        improved = True
        while improved:
            improved = False
            for axis in self.axes:
                for move in (step, -step):
                    if self._is_better(moved := _moved(best, {axis: move}), best):
                        best, improved = moved, True
                        break
            if improved or not jointly:
                continue
            pairs = (_moved(best, {up: step, down: -step}) for up, down in permutations(self.axes, 2))
            found = next((moved for moved in pairs if self._is_better(moved, best)), None)
            best, improved = (best, False) if found is None else (found, True)
        return best

    def _is_better(self, moved: _Point, best: _Point) -> bool:
        return self.error(moved) < _WORTHWHILE * self.error(best)


def _moved(point: _Point, by: Mapping[int, int]) -> _Point:
    """`by` has bits by axis."""
    return tuple(bits + by.get(axis, 0) for axis, bits in enumerate(point))


def _rises(problem: Problem) -> int:
    """How many levels have a scale of their own; none where rescales take several primes, which leaves bits enough."""
    return min(problem.depth, _MAX_RISES) if problem.program.width == 1 else 0


def _refusal(problem: Problem) -> DoesNotFit:
    """Why not even the smallest scales fit, or else the candidate that came nearest."""
    stages, point = problem.program.stages, min(_STARTS)
    output, first = _output(problem), _first_bits(problem, point)
    if first > problem.prime_bits:
        return too_wide_output(stages[-1].layer, output, first, problem.prime_bits)
    base_bits = first + max(first, LEAST_LEVEL_BITS)
    if base_bits + problem.depth * LEAST_LEVEL_BITS > MAX_LOG2_QP[problem.degree]:
        return too_deep(stages, problem.program.levels, problem.degree, base_bits, LEAST_LEVEL_BITS)
    found: list[DoesNotFit] = []
    for point in _STARTS:
        params = _params(problem, point)
        try:
            if params is not None:
                assemble(problem, params, _scales(problem, point))
        except DoesNotFit as error:
            found.append(error)
    least = min(found, key=lambda e: e.missing_bits if isinstance(e, OutOfRange) else math.inf, default=None)
    return least or DoesNotFit(f"cannot find primes for {problem.depth} levels; try a larger N or smaller ranges")


def _output(problem: Problem) -> float:
    return problem.magnitudes.get(problem.model.output.node, 1.0)


def _first_bits(problem: Problem, point: _Point) -> float:
    """The prime that the output is left with."""
    delta, last, _, *rises = point
    return delta + sum(rises[:1]) + last + math.log2(max(2 * _output(problem), 1.0)) + HEADROOM_BITS


def _scales(problem: Problem, point: _Point) -> Scales:
    delta, last, _, *rises = point
    width = problem.program.width
    coefficient = _COEFFICIENT_BITS if width == 1 else width * _COEFFICIENT_BITS_EACH
    return Scales(2.0**delta, 2.0**last, 2.0**coefficient, rises=tuple(rises))


def _try(problem: Problem, point: _Point) -> Candidate | None:
    params = _params(problem, point)
    if params is None:
        return None
    try:
        candidate = assemble(problem, params, _scales(problem, point))
    except DoesNotFit:
        return None
    return None if first_overflow(candidate[0]) else candidate


def _params(problem: Problem, point: _Point) -> CkksParams | None:
    """The chain for these scales; None where its primes would be too long or too short."""
    if problem.program.width > 1:
        return _wide_params(problem, point)
    first, longest, count = _first_bits(problem, point), problem.prime_bits, problem.gadget.alpha
    cap = MAX_LOG2_QP[problem.degree]
    # Special primes are at least as large as every live one, so that key switching adds little.
    more = point[_SPECIAL]
    rest = min(longest - more, (cap - first - count * more) / (problem.depth + count)) if problem.depth else 0.0
    special = max(rest, first) + more if problem.depth else longest
    if problem.depth and first > rest:
        rest = min(longest, (cap - (count + 1) * first - count * more) / problem.depth)
    if not MIN_PRIME_BITS <= first <= min(longest, problem.first_bits) or special > longest or more < 0:
        return None
    if problem.depth and rest < MIN_PRIME_BITS:
        return None
    whole = first + rest * problem.depth + count * special
    if whole > cap + 1e-6 or (problem.depth and rest - point[0] < _LEAST_DROP_BITS):
        return None
    primes = find_primes(problem.degree, [*[special] * count, first, *[rest] * problem.depth])
    return CkksParams(problem.degree, tuple(primes[count:]), tuple(primes[:count]))


def _wide_params(problem: Problem, point: _Point) -> CkksParams | None:
    """The same where rescales take several primes: all as long as they can be, the special ones too."""
    width, count, cap = problem.program.width, problem.gadget.alpha, MAX_LOG2_QP[problem.degree]
    each = min(problem.prime_bits, cap / (problem.depth + 1 + count))
    fits = width * each >= _first_bits(problem, point) and width * each - point[0] >= _LEAST_DROP_BITS
    if each < MIN_PRIME_BITS or not fits or point[_SPECIAL]:
        return None
    primes = find_primes(problem.degree, [each] * (problem.depth + 1 + count))
    return CkksParams(problem.degree, tuple(primes[count:]), tuple(primes[:count]))
