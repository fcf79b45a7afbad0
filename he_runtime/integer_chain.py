"""Prime chains for integer weights: scales grow by the bits of the weights only, so fewer and shorter primes hold them.

Nothing forces a scale back to Delta when every operand is an exact integer. What remains to choose is which squares are
rescaled, how long the coefficients of quadratics are, and how many primes the result is left with; the largest Delta that fits
then has the least error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from .candidate import Problem, assemble, predicted
from .chain import HEADROOM_BITS, MIN_PRIME_BITS
from .errors import DoesNotFit, ParameterError
from .lower.integers import integer_steps, integral_product, is_plain, with_rescales
from .lower.program import Scales
from .lower.stage_types import LinearStage, QuadraticStage, Vector
from .params import MAX_LOG2_QP, CkksParams, find_primes
from .plan import Plan
from .plan.verify import first_overflow

__all__ = ["integer_chain"]

_COEFFICIENT_BITS = (8.0, 12.0, 16.0)
_LEAST_DELTA, _MOST_DELTA, _DELTA_STEP = 8.0, 40.0, 0.5


@dataclass(frozen=True)
class _Chain:
    """Bits of one choice: the input's scale, coefficients, the primes of the rescales (last first), those left at the end, P."""

    delta: float
    coefficient: float
    rescaled: frozenset[str]
    drops: tuple[float, ...]
    base: tuple[float, ...]
    special: float

    @property
    def limbs(self) -> int:
        return len(self.base) + len(self.drops)


def integer_chain(problem: Problem) -> Plan | None:
    """The plan with the fewest primes whose error holds the budget; None where weights are no integers or none does."""
    steps = integer_steps(problem.program) if problem.program.width == 1 else None
    if steps is None:
        return None
    for chain in sorted(_chains(problem, steps), key=lambda c: (c.limbs, -c.delta, c.coefficient)):
        plan = _plan(problem, chain, steps)
        if plan is not None and plan.error_bound <= problem.budget:
            return plan
    return None


def _chains(problem: Problem, steps: dict[str, Vector]) -> Iterator[_Chain]:
    """For each set of rescaled squares, length of coefficients and number of primes the one with the largest Delta."""
    squares = [s.name for s in problem.program.stages if not isinstance(s, LinearStage)]
    for count in range(len(squares) + 1):
        for rescaled in combinations(squares, count):
            for base in range(1, problem.depth + 2 - count):
                for bits in _coefficients(problem, steps):
                    fitting = (_chain(problem, steps, frozenset(rescaled), base, delta, bits) for delta in _deltas())
                    best = next((c for c in fitting if c is not None), None)
                    if best is not None:
                        yield best


def _coefficients(problem: Problem, steps: dict[str, Vector]) -> tuple[float, ...]:
    """Lengths to try; one, which nothing has, where all activations are squares of tensors at one scale."""
    quadratics = (s for s in problem.program.stages if isinstance(s, QuadraticStage))
    plain = all(is_plain(s, steps.get(s.input, np.ones(1))) for s in quadratics)
    return _COEFFICIENT_BITS[:1] if plain else _COEFFICIENT_BITS


def _deltas() -> Iterator[float]:
    """From the largest down, in bits."""
    count = int((_MOST_DELTA - _LEAST_DELTA) / _DELTA_STEP)
    return (_MOST_DELTA - k * _DELTA_STEP for k in range(count + 1))


def _chain(
    problem: Problem, steps: dict[str, Vector], rescaled: frozenset[str], base: int, delta: float, coefficient: float
) -> _Chain | None:
    """Follow the scale in bits from the input on; None where some modulus cannot hold its values."""
    scales, longest = np.array([2.0**delta]), problem.prime_bits
    drops: list[float] = []
    needs: list[tuple[int, float]] = []  # primes dropped before, bits of modulus
    for stage in problem.program.stages:
        if isinstance(stage, QuadraticStage):
            scales = np.array([integral_product(stage, scales, 2.0**coefficient)])
        else:
            scales = scales / steps[stage.name]
        size = math.log2(max(2 * problem.magnitudes.get(stage.name, 1.0), 1.0)) + HEADROOM_BITS
        needs.append((len(drops), math.log2(scales.max()) + size))
        if stage.name in rescaled:
            drops.append(min(longest, math.log2(scales.max()) - delta))
            scales = scales / 2.0 ** drops[-1]
            needs.append((len(drops), math.log2(scales.max()) + size))
    room = max(need - sum(drops[before:]) for before, need in needs)
    each = max(MIN_PRIME_BITS, room / base)
    # On a hybrid gadget every special prime is as long as the longest of a digit.
    count = problem.gadget.alpha
    special = min(longest, (MAX_LOG2_QP[problem.degree] - base * each - sum(drops)) / count)
    if (
        each > longest
        or (count > 1 and special < max(each, *drops, 0.0))
        or special < MIN_PRIME_BITS
        or min(drops, default=MIN_PRIME_BITS) < MIN_PRIME_BITS
    ):
        return None
    return _Chain(delta, coefficient, rescaled, tuple(reversed(drops)), (each,) * base, special)


def _plan(problem: Problem, chain: _Chain, steps: dict[str, Vector]) -> Plan | None:
    try:
        count = problem.gadget.alpha
        primes = find_primes(problem.degree, [*[chain.special] * count, *chain.base, *chain.drops])
        params = CkksParams(problem.degree, tuple(primes[count:]), tuple(primes[:count]))
        program = with_rescales(problem.program, chain.rescaled, len(chain.base))
        variant = replace(problem, program=program, depth=len(chain.drops))
        plan, low = assemble(variant, params, Scales(2.0**chain.delta, 1.0, 2.0**chain.coefficient, steps=steps))
    except (DoesNotFit, ParameterError):
        return None
    return None if first_overflow(plan) else predicted(variant, plan, low)
