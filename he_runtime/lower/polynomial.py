"""A polynomial as few products of ciphertexts at the least depth: which powers are made, and how they combine.

Paterson-Stockmeyer in the Chebyshev basis (Chen, Chillotti, Song, EUROCRYPT'19, section 4; Bossuat et al., EUROCRYPT'21,
section 4), with three changes that merged levels allow:

* powers are C_k = 2 T_k(v / 2) of v = 2u in [-2, 2], where C_{a+b} = C_a C_b - C_|a-b| needs no doubling;
* a leaf sum_k g_k C_k is not rescaled before the product that it enters, so depth is ceil(log2 d): that is
  ceil(log2(d + 1)), and one level less where d is a power of two;
* the products of one sum are added before they are relinearized and rescaled, once.

With m powers and giants m, 2m, 4m, ... a degree up to m 2^i takes m - 1 + (i - 1) + 2^i - 1 products: close to
sqrt(2d) + log2 d for the best m (3: 2, 4: 2, 6: 3, 8: 4, 15: 7, 31: 11 at the least). The m is taken whose products,
relinearizations and rescales cost least; powers that only zeros multiply are not made, so odd and even polynomials
are cheaper. Heights count levels from the top: what has height h is used h levels below the input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..plan import Kind

__all__ = ["Leaf", "Power", "Structure", "Sum", "Terms", "depth", "structure"]

Floats = npt.NDArray[np.float64]
Terms = dict[int, Floats]  # index k of C_k (0: the constant one) -> coefficient, (size,) or (1,)
_MAX_POWERS = 32
# Relative costs: a relinearization is one key switch.
_RELINEARIZE, _PRODUCT, _RESCALE, _PLAIN = 1.0, 0.15, 0.2, 0.05


@dataclass(frozen=True)
class Leaf:
    """sum_k terms[k] C_k."""

    terms: Terms = field(repr=False)

    @cached_property
    def bound(self) -> float:
        """No value on the interval is larger, where |C_k| is at most 2."""
        return sum(2 * float(np.abs(v).max()) for v in self.terms.values())


@dataclass(frozen=True)
class Sum(Leaf):
    """sum_j part_j C_{M_j} + rest, one relinearization and one rescale; `terms` are the coefficients of the whole."""

    products: tuple[tuple[Leaf | Sum, int], ...]
    rest: Leaf


@dataclass(frozen=True)
class Power:
    """C_k = C_left C_right - C_|left-right|, computed at height `height` - 1."""

    left: int
    right: int
    height: int

    @property
    def difference(self) -> int:
        return abs(self.left - self.right)


@dataclass(frozen=True)
class Structure:
    """How one polynomial is computed. `powers` excludes C_1, the input; `heights` includes it."""

    top: Sum
    powers: dict[int, Power]
    heights: dict[int, int]
    depth: int

    @property
    def products(self) -> int:
        """Products of ciphertexts."""
        return len(self.powers) + sum(len(s.products) for s, _ in self.sums)

    @property
    def relinearizations(self) -> int:
        return len(self.powers) + len(self.sums)

    @cached_property
    def sums(self) -> list[tuple[Sum, int]]:
        """Every sum with its height, the whole first."""
        return list(_sums(self.top, self.depth - 1))

    @property
    def plain_products(self) -> int:
        """Products by a coefficient or a constant, at the most."""
        leaves = [
            leaf for s, _ in self.sums for leaf in (s.rest, *(p for p, _ in s.products if not isinstance(p, Sum)))
        ]
        return sum(len(leaf.terms) for leaf in leaves) + sum(1 for p in self.powers.values() if p.difference)

    def leaf_counts(self, level: int) -> Iterator[tuple[tuple[Kind, int], int]]:
        """(leaf, level) -> how often, for an input at `level`; coefficients as if all were encoded at the last level."""
        for power in self.powers.values():
            at = level - power.height + 1
            yield (Kind.SQUARE if power.left == power.right else Kind.MUL, at), 1
            yield (Kind.RELINEARIZE, at), 1
            yield (Kind.RESCALE, at), 1
        for whole, height in self.sums:
            yield (Kind.MUL, level - height), len(whole.products)
            yield (Kind.RELINEARIZE, level - height), 1
            yield (Kind.RESCALE, level - height), 1
        yield (Kind.MUL_PLAIN, level - self.depth + 1), self.plain_products
        yield (Kind.ADD, level - self.depth + 1), self.plain_products

    @property
    def cost(self) -> float:
        plain = self.plain_products
        return (_RELINEARIZE + _RESCALE) * self.relinearizations + _PRODUCT * self.products + _PLAIN * plain


def depth(degree: int) -> int:
    """Levels of a polynomial of this degree, at least 2: ceil(log2 degree)."""
    return (degree - 1).bit_length()


def structure(coefficients: Floats) -> Structure:
    """The cheapest structure of least depth for Chebyshev coefficients (degree + 1, size or 1), degree at least 2."""
    degree = len(coefficients) - 1
    terms = {k: row if k == 0 else row / 2 for k, row in enumerate(coefficients) if row.any()}
    found = [s for m in range(1, min(degree, _MAX_POWERS + 1)) if (s := _attempt(terms, m)) is not None]
    return min(found, key=lambda s: (s.cost, s.products))


def _attempt(terms: Terms, babies: int) -> Structure | None:
    """The structure whose leaves have at most this degree, or None where some power would come too late."""
    top = _combined(terms, babies)
    least = depth(max(terms))
    assert isinstance(top, Sum)
    powers = _powers(top)
    heights = {1: least} | dict.fromkeys(powers, least)
    for used, height in _uses(top, least - 1):
        heights[used] = min(heights[used], height)
    made: dict[int, Power] = {}
    for k in sorted(powers, reverse=True):
        left, right = powers[k]
        made[k] = Power(left, right, heights[k])
        for operand in {left, right, abs(left - right)} - {0}:
            heights[operand] = min(heights[operand], heights[k] - 1)
    if heights[1] < 0:
        return None
    return Structure(top, dict(sorted(made.items())), heights, least)


def _combined(terms: Terms, babies: int) -> Leaf:
    """Split at the largest giant below the degree until leaves are left; sums at one height become one."""
    degree = max(terms, default=0)
    if degree <= babies:
        return Leaf(terms)
    giant = babies
    while 2 * giant < degree:
        giant *= 2
    quotient, remainder = _divided(terms, giant)
    rest = _combined(remainder, babies)
    first = (_combined(quotient, babies), giant)
    if isinstance(rest, Sum):
        return Sum(terms, (first, *rest.products), rest.rest)
    return Sum(terms, (first,), rest)


def _divided(terms: Terms, giant: int) -> tuple[Terms, Terms]:
    """sum_k g_k C_k = quotient * C_giant + remainder, for a degree of at most 2 * giant."""
    quotient: Terms = {}
    remainder: Terms = {}

    def add(to: Terms, k: int, value: Floats) -> None:
        to[k] = to[k] + value if k in to else value

    for k, value in terms.items():
        if k < giant:
            add(remainder, k, value)
            continue
        add(quotient, k - giant, value)
        if k == 2 * giant:
            add(remainder, 0, -2 * value)
        elif k > giant:
            add(remainder, 2 * giant - k, -value)
    return ({k: v for k, v in part.items() if v.any()} for part in (quotient, remainder))  # type: ignore[return-value]


def _uses(sum_: Sum, height: int) -> Iterator[tuple[int, int]]:
    """(k, height at which C_k is needed at the latest) for every use in a sum and its parts."""
    for k in sum_.rest.terms:
        if k:
            yield k, height
    for part, giant in sum_.products:
        yield giant, height
        if isinstance(part, Sum):
            yield from _uses(part, height - 1)
        else:
            # One level of slack where there is any, so that the leaf may have a rescale of its own.
            yield from ((k, max(height - 1, _least(k))) for k in part.terms if k)


def _least(k: int) -> int:
    """The height at which C_k can be there."""
    return (k - 1).bit_length()


def _sums(sum_: Sum, height: int) -> Iterator[tuple[Sum, int]]:
    yield sum_, height
    for part, _ in sum_.products:
        if isinstance(part, Sum):
            yield from _sums(part, height - 1)


def _powers(top: Sum) -> dict[int, tuple[int, int]]:
    """k -> (a, b) with a + b = k, for every power that is needed, each at the least height and with few others."""
    missing = {k for k, _ in _uses(top, 0)} - {1}
    chosen: dict[int, tuple[int, int]] = {}
    while missing:
        k = max(missing)
        missing.remove(k)
        half = 1 << (_least(k) - 1)  # both factors fit one level below
        have = {0, 1} | missing | set(chosen)
        pairs = [(a, k - a) for a in range((k + 1) // 2, half + 1)]
        chosen[k] = min(pairs, key=lambda p: (len({*p, p[0] - p[1]} - have), p[0] - p[1]))
        missing |= {chosen[k][0], chosen[k][1], abs(chosen[k][0] - chosen[k][1])} - {0, 1} - set(chosen)
    return chosen
