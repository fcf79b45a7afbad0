"""Elementwise operations on every path, against Python integers and SEAL."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from he_runtime.backends.seal_ring import U64, SealRing
from tests.kernel.primes import is_prime, primes_below

SETTINGS = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def prime_at_most(limit: int) -> int:
    return next(q for q in range(limit - 1 + limit % 2, 2, -2) if is_prime(q))


PRIMES = (
    st.integers(3, 60).flatmap(lambda bits: st.integers((1 << (bits - 1)) + 1, (1 << bits) - 1))
    | st.sampled_from([(1 << bits) - 1 for bits in (17, 48, 49, 50, 51, 60)])
).map(prime_at_most)
LENGTHS = st.sampled_from([8, 16, 24, 72, 128, 256, 264, 1000])


def vector(draw: st.DrawFn, n: int, q: int) -> U64:
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    extremes = np.array(sorted({0, 1, 2, q // 2, q - 2, q - 1}), np.uint64)
    share = draw(st.sampled_from([0.0, 0.5, 1.0]))
    return np.where(rng.random(n) < share, rng.choice(extremes, n), rng.integers(0, q, n, dtype=np.uint64))


@st.composite
def vectors(draw: st.DrawFn, count: int = 2) -> tuple[int, list[U64]]:
    q, n = draw(PRIMES), draw(LENGTHS)
    return q, [vector(draw, n, q) for _ in range(count)]


def exact(values: Any, q: int) -> U64:
    return np.array(values % q, dtype=np.uint64)


@SETTINGS
@given(case=vectors())
def test_arithmetic(kernel: Any, paths: list[str], case: tuple[int, list[U64]]) -> None:
    q, (a, b) = case
    x, y = a.astype(object), b.astype(object)
    for path in paths:
        field, out = kernel.Field(q, path), np.empty_like(a)
        for name, expected in (("add", x + y), ("sub", x - y), ("multiply", x * y)):
            getattr(field, name)(out, a, b)
            np.testing.assert_array_equal(out, exact(expected, q), err_msg=f"{path} {name}")
        field.negate(out, a)
        np.testing.assert_array_equal(out, exact(-x, q), err_msg=path)
        for w in (0, 1, q - 1, int(b[0])):
            field.multiply_constant(out, a, w)
            np.testing.assert_array_equal(out, exact(x * w, q), err_msg=path)
            field.sub_multiply_constant(out, a, b, w)
            np.testing.assert_array_equal(out, exact((x - y) * w, q), err_msg=path)
        both = a.copy()
        field.multiply(both, both, both)
        np.testing.assert_array_equal(both, exact(x * x, q), err_msg=path)


@SETTINGS
@given(case=vectors(7), count=st.integers(0, 40), accumulate=st.booleans())
def test_dot(kernel: Any, paths: list[str], case: tuple[int, list[U64]], count: int, accumulate: bool) -> None:
    q, (start, *rows) = case
    a, b = [rows[k % 5] for k in range(count)], [rows[(k * k + 1) % 6] for k in range(count)]
    expected = start.astype(object) if accumulate else np.zeros(len(start), object)
    for x, y in zip(a, b, strict=True):
        expected = expected + x.astype(object) * y.astype(object)
    for path in paths:
        out = start.copy()
        kernel.Field(q, path).dot(out, a, b, accumulate)
        np.testing.assert_array_equal(out, exact(expected, q), err_msg=path)
        pair = start.copy(), start.copy()
        kernel.Field(q, path).dot_pair(*pair, a, a, b, accumulate)
        np.testing.assert_array_equal(pair[1], out, err_msg=path)
        kernel.Field(q, path).dot(out := start.copy(), a, a, accumulate)
        np.testing.assert_array_equal(pair[0], out, err_msg=path)


@pytest.mark.parametrize("count", [15, 16, 255, 256, 2048, 2049, 4092, 4093, 9000])
@pytest.mark.parametrize("bits", [50, 60])
def test_dot_of_many_greatest_products(kernel: Any, paths: list[str], count: int, bits: int) -> None:
    """Sums of the greatest products around and beyond each path's limit for one reduction."""
    q = prime_at_most((1 << bits) - 1)
    top = np.full(8, q - 1, np.uint64)
    for path in paths:
        for accumulate in (False, True):
            out = top.copy()
            kernel.Field(q, path).dot(out, [top] * count, [top] * count, accumulate)
            expected = ((q - 1) * (q - 1) * count + (q - 1) * accumulate) % q
            assert out.tolist() == [expected] * 8, (path, accumulate)


@SETTINGS
@given(data=st.data(), q=PRIMES, n=LENGTHS, count=st.integers(0, 20), accumulate=st.booleans())
def test_dot_constants(
    kernel: Any, paths: list[str], data: st.DataObject, q: int, n: int, count: int, accumulate: bool
) -> None:
    """Residues of other primes, each times a constant: what extends a base."""
    draw = data.draw
    for path in paths:
        field = kernel.Field(q, path)
        largest = 60 if field.path == "portable" else 50
        sources = [prime_at_most((1 << draw(st.integers(3, largest))) - 1) for _ in range(count)]
        a = [vector(draw, n, source) for source in sources]
        w = [draw(st.integers(0, q - 1) | st.just(q - 1)) for _ in range(count)]
        out = start = vector(draw, n, q)
        expected = start.astype(object) if accumulate else np.zeros(n, object)
        for x, factor in zip(a, w, strict=True):
            expected = expected + x.astype(object) * factor
        field.dot_constants(out, a, w, accumulate)
        np.testing.assert_array_equal(out, exact(expected, q), err_msg=path)


@SETTINGS
@given(case=vectors(1), other=PRIMES)
def test_convert(kernel: Any, paths: list[str], case: tuple[int, list[U64]], other: int) -> None:
    q, (a,) = case
    for path in paths:
        out = np.empty_like(a)
        kernel.Field(other, path).convert(out, a, q)
        np.testing.assert_array_equal(out, a % np.uint64(other), err_msg=path)


@pytest.mark.parametrize("n", [1024, 4096, 8192])
def test_permute_is_the_automorphism(kernel: Any, paths: list[str], n: int) -> None:
    q = primes_below(1 << 50, n, 1)[0]
    x = np.random.default_rng(n).integers(0, q, n, dtype=np.uint64)
    for element in (1, 3, 5, 3**7 % (2 * n), n + 1, n - 1, 2 * n - 1):
        image = np.zeros(n, np.uint64)  # X^i -> X^(element * i), X^n = -1
        exponents = np.arange(n) * element % (2 * n)
        image[exponents % n] = np.where(exponents < n, x, (np.uint64(q) - x) % np.uint64(q))
        for path in paths:
            ntt = kernel.Ntt(n, q, path)
            values, expected, out = np.empty_like(x), np.empty_like(x), np.empty_like(x)
            ntt.forward(values, x)
            ntt.forward(expected, image)
            kernel.Galois(n, element).permute(out, values, path)
            np.testing.assert_array_equal(out, expected, err_msg=f"{path} {element}")


def test_sums_and_products_are_those_of_seal(kernel: Any, paths: list[str]) -> None:
    n = 4096
    primes = primes_below(1 << 50, n, 3)
    rng = np.random.default_rng(5)
    a, b = (np.stack([rng.integers(0, q, (2, n), dtype=np.uint64) for q in primes[:2]], axis=1) for _ in range(2))
    ring = SealRing(n, primes)
    left, right = ring.upload(a), ring.upload(b)
    ring.evaluator.add_inplace(left, right)
    total = ring.download(left)
    ring.evaluator.negate_inplace(right)
    negated = ring.download(right)
    out = np.empty(n, np.uint64)
    for path in paths:
        for i, q in enumerate(primes[:2]):
            field = kernel.Field(q, path)
            for p in range(2):
                field.add(out, a[p, i], b[p, i])
                np.testing.assert_array_equal(out, total[p, i])
                field.negate(out, b[p, i])
                np.testing.assert_array_equal(out, negated[p, i])


def test_refuses_what_does_not_fit(kernel: Any, paths: list[str]) -> None:
    q = 65537
    ok, out = np.ones(16, np.uint64), np.empty(16, np.uint64)
    twelve, high, strided = np.ones(12, np.uint64), np.full(16, q, np.uint64), np.ones(32, np.uint64)[::2]
    shared = np.ones(24, np.uint64)
    for path in paths:
        field = kernel.Field(q, path)
        calls = [
            lambda f=field: f.add(out, ok, ok[:8]),
            lambda f=field: f.add(out[:8], ok, ok),
            lambda f=field: f.add(np.empty(12, np.uint64), twelve, twelve),
            lambda f=field: f.sub(out, high, ok),
            lambda f=field: f.sub(out, ok, strided),
            lambda f=field: f.multiply(strided, ok, ok),
            lambda f=field: f.multiply(out, ok, ok.astype(np.int64)),
            lambda f=field: f.multiply(out, ok, ok.reshape(2, 8)),
            lambda f=field: f.multiply(shared[8:], shared[:16], ok),
            lambda f=field: f.negate(out, high),
            lambda f=field: f.multiply_constant(out, ok, q),
            lambda f=field: f.dot(out, [ok], [ok, ok]),
            lambda f=field: f.dot(out, [ok], [ok[:8]]),
            lambda f=field: f.dot(out, [out], [ok]),
            lambda f=field: f.dot(high, [ok], [ok], True),
            lambda f=field: f.dot_pair(out, out, [ok], [ok], [ok]),
            lambda f=field: f.dot_pair(out, ok.copy(), [ok], [ok], []),
            lambda f=field: f.dot_pair(out, ok.copy(), [ok], [out], [ok]),
            lambda f=field: f.dot_pair(out, np.ones(8, np.uint64), [ok], [ok], [ok]),
            lambda f=field: f.sub_multiply_constant(out, ok, high, 1),
            lambda f=field: f.sub_multiply_constant(out, ok, ok, q),
            lambda f=field: f.dot_constants(out, [ok], []),
            lambda f=field: f.dot_constants(out, [ok], [q]),
            lambda f=field: f.dot_constants(out, [np.full(16, 1 << 60, np.uint64)], [1]),
            lambda f=field: f.dot_constants(out, [ok[:8]], [1]),
            lambda f=field: f.convert(out, high, q),
            lambda f=field: f.convert(out, ok, 65535),
        ]
        for number, call in enumerate(calls):
            with pytest.raises(ValueError):
                call()
                pytest.fail(f"call {number} on {path} was accepted")
        galois = kernel.Galois(1024, 3)
        values = np.ones(1024, np.uint64)
        for arguments in ((values, values), (values[:512], values.copy()), (np.empty_like(values), values[:-8])):
            with pytest.raises(ValueError):
                galois.permute(*arguments, path)
    for n, element in ((1024, 2), (1024, 2049), (1000, 3), (512, 3)):
        with pytest.raises(ValueError):
            kernel.Galois(n, element)
    with pytest.raises(ValueError):
        kernel.Field(65536, "portable")
