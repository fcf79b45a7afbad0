"""One ring's plan: the gadget by price, then the primes.

A back end that evaluates with SEAL has one gadget and any primes. The native kernel also has digits of several primes
under as many special ones: fewer transforms and smaller keys, for bits of the modulus that precision could have. It is
fastest on primes below 2^50, so longer ones are a last resort there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from .candidate import MAX_PRIME_BITS, Problem
from .chain import best_chain
from .cost import CostTable
from .cost.formulas import NARROW_BITS
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


def cheapest_plan(problem: Problem, table: CostTable, gadget: str | None = None) -> tuple[Plan, float]:
    """A plan within the budget on the cheapest gadget that has one, and its seconds by the table before scales are known.

    `gadget` allows no other. DoesNotFit, or ParameterError, when none has one.
    """
    reasons: list[DoesNotFit | ParameterError] = []
    for seconds, choice in choices(problem, table, gadget):
        try:
            plan = integer_chain(choice) or best_chain(choice)
            require_exactness(plan, problem.budget)
            return plan, seconds
        except (DoesNotFit, ParameterError) as error:
            reasons.append(error)
    raise nearest(reasons)


def choices(problem: Problem, table: CostTable, gadget: str | None = None) -> Iterator[tuple[float, Problem]]:
    """(seconds, problem with gadget and longest prime), the cheapest first, the ones of long primes last."""
    seal = Costs(table, problem.degree)
    names = [SEAL, *(f"hybrid-{alpha}" for alpha in range(2, _MAX_ALPHA + 1))] if seal.fused else [SEAL]
    priced: list[tuple[float, float, Gadget]] = []
    for name in names if gadget is None else [gadget]:
        found = Gadget.parse(name)
        costs = Costs(table, problem.degree, (found.alpha, found.alpha))
        seconds = costs.counted(problem.program.leaf_counts(seal.fused))
        priced.append((seconds * (_WORTHWHILE if found.name == SEAL else 1.0), seconds, found))
    if not seal.fused:
        yield priced[0][1], replace(problem, gadget=priced[0][2])
        return
    for _, seconds, found in sorted(priced, key=lambda p: p[0]):
        yield seconds, replace(problem, gadget=found, prime_bits=NARROW_BITS)
    if gadget in (None, SEAL):
        seconds = next(s for _, s, found in priced if found.name == SEAL)
        yield (
            seconds * table.widening(problem.degree, (1 << int(NARROW_BITS),)),
            replace(problem, prime_bits=MAX_PRIME_BITS),
        )
