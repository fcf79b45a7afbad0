"""One ring's plan: the gadget by price, then the primes.

A back end that evaluates with SEAL has one gadget and any primes. The native kernel also has digits of several primes
under as many special ones: fewer transforms and smaller keys, for bits of the modulus that precision could have. It is
fastest on primes below 2^50, so longer ones are a last resort there, after fewer baby steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from .candidate import Problem
from .chain import best_chain
from .cost import CostTable
from .cost.formulas import NARROW_BITS, wide_share
from .errors import DoesNotFit, ParameterError
from .gadget import SEAL, Gadget
from .integer_chain import integer_chain
from .lower.costs import Costs
from .plan import Plan
from .plan.counts import FUSED
from .refusals import nearest, require_exactness

__all__ = ["cheapest_plan", "choices", "require_gadget"]

_MAX_ALPHA = 4
_WORTHWHILE = 0.97  # of the price: what a plan that runs on the native back end alone must save


def require_gadget(gadget: str | None, table: CostTable) -> None:
    """ParameterError for a gadget that there is not, or that the table's back end does not switch keys on."""
    if gadget is not None and Gadget.parse(gadget).name != SEAL and table.backend not in FUSED:
        raise ParameterError(
            f"cannot plan for gadget {gadget!r} on back end {table.backend!r}: need native; try a cost table of it, or 'seal'"
        )


def cheapest_plan(problem: Problem, table: CostTable, gadget: str | None = None) -> tuple[Plan, Problem, float]:
    """A plan within the budget on the cheapest gadget that has one, the choice that it is of, and its seconds by the table
    before scales are known.

    `gadget` allows no other. DoesNotFit, or ParameterError, when none has one.
    """
    reasons: list[DoesNotFit | ParameterError] = []
    for seconds, choice in choices(problem, table, gadget):
        try:
            plan = integer_chain(choice) or best_chain(choice)
            require_exactness(plan, problem.budget)
            return plan, choice, seconds
        except (DoesNotFit, ParameterError) as error:
            reasons.append(error)
    raise nearest(reasons)


def choices(problem: Problem, table: CostTable, gadget: str | None = None) -> Iterator[tuple[float, Problem]]:
    """(seconds, problem with gadget and longest primes), the cheapest first.

    Without pitched copies errors are smaller, so that comes next. Where the kernel evaluates, primes are short; where that
    does not hold the budget, with fewer baby steps; then all primes but the first may be long, and then all.
    """
    fused = Costs(table, problem.degree).fused
    packings = [p for p in (problem, problem.plain()) if p is not None]
    if not fused:
        for packing in packings:
            yield _priced(packing, table, [gadget or SEAL])[0]
        return
    names = [SEAL, *(f"hybrid-{alpha}" for alpha in range(2, _MAX_ALPHA + 1))] if gadget is None else [gadget]
    splits = [_splits(packing) for packing in packings]
    for split in (split for both in splits for split in both):
        yield from _priced(replace(split, prime_bits=NARROW_BITS), table, names)
    for both in splits if SEAL in names else ():
        yield from _priced(replace(both[0], first_bits=NARROW_BITS), table, [SEAL])
        for split in both:
            yield from _priced(split, table, [SEAL])


def _splits(problem: Problem) -> list[Problem]:
    """The problem, and where it is another one, the problem with fewer baby steps."""
    even = problem.evenly_split()
    return [problem, even] if even.program.leaf_counts(True) != problem.program.leaf_counts(True) else [problem]


def _priced(problem: Problem, table: CostTable, names: Iterable[str]) -> list[tuple[float, Problem]]:
    """On each of these gadgets, the cheapest first. A prime of a chain is as long as the longest, but for the first."""
    fused, rows = Costs(table, problem.degree).fused, problem.depth + 1
    first, longest = (1 << int(min(bits, problem.prime_bits)) - 1 for bits in (problem.first_bits, problem.prime_bits))
    wide, found = wide_share([first, *[longest] * rows]), []
    for gadget in map(Gadget.parse, names):
        costs = Costs(table, problem.degree, (gadget.alpha, gadget.alpha), wide)
        found.append((costs.counted(problem.program.leaf_counts(fused)), replace(problem, gadget=gadget)))
    return sorted(found, key=lambda f: f[0] * (_WORTHWHILE if f[1].gadget.name == SEAL else 1.0))
