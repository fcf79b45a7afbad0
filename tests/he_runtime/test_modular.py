"""Products modulo primes of up to 60 bits are exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime.modular import add_in_place, mulmod
from he_runtime.params import find_primes

PRIMES = find_primes(1024, [60, 59.99, 59, 53, 52, 50, 49, 40, 31, 30, 29, 18])


def edges(q: int) -> list[int]:
    near = [x + d for x in (0, 1 << 30, 1 << 31, 1 << 52, 1 << 53, q // 2, q) for d in range(-2, 3)]
    return sorted({x for x in near if 0 <= x < q})


@pytest.mark.parametrize("q", PRIMES)
def test_extreme_residues(q: int) -> None:
    pairs = [(x, y) for x in edges(q) for y in edges(q)]
    x, y = (np.array(side, dtype=np.uint64) for side in zip(*pairs, strict=True))
    assert mulmod(x, y, q).tolist() == [a * b % q for a, b in pairs]
    total = x.copy()
    add_in_place(total, y, q)
    assert total.tolist() == [(a + b) % q for a, b in pairs]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PRIMES), st.data())
def test_random_residues(q: int, draw: st.DataObject) -> None:
    residue = st.integers(0, q - 1)
    xs = draw.draw(st.lists(residue, min_size=1, max_size=50))
    ys = draw.draw(st.lists(residue, min_size=len(xs), max_size=len(xs)))
    x, y = np.array(xs, dtype=np.uint64), np.array(ys, dtype=np.uint64)
    assert mulmod(x, y, q).tolist() == [a * b % q for a, b in zip(xs, ys, strict=True)]
    assert mulmod(x, ys[0], q).tolist() == [a * ys[0] % q for a in xs]
    assert x.tolist() == xs and y.tolist() == ys, "operands are only read"


def test_a_million_products() -> None:
    rng = np.random.default_rng(6)
    for q in PRIMES[:2]:
        x, y = (rng.integers(0, q, 1 << 18, dtype=np.uint64) for _ in range(2))
        product = x.astype(object) * y.astype(object) % q
        assert np.array_equal(mulmod(x, y, q), product.astype(np.uint64))
