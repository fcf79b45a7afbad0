"""Transforms: against a schoolbook product, against SEAL bit for bit, and one path against another."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from he_runtime.backends.seal_ring import U64, SealRing
from tests.kernel.primes import is_prime, primes_below

DEGREES = [1 << log for log in range(10, 17)]
SETTINGS = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def rings(draw: st.DrawFn) -> tuple[int, int]:
    """(n, q): any length, any prime of 17 to 60 bits that fits it, the narrow and the wide ones alike."""
    n = draw(st.sampled_from(DEGREES))
    bits = draw(st.integers(17, 60) | st.sampled_from([48, 49, 50, 51, 60]))
    limit = draw(st.integers(1 << (bits - 1), 1 << bits) | st.just(1 << bits))
    try:
        return n, primes_below(limit, n, 1)[0]
    except ValueError:  # none so small; the least prime for this length
        return n, next(q for q in range(2 * n + 1, 1 << 24, 2 * n) if is_prime(q))


def residues(n: int, q: int, kind: str, seed: int) -> U64:
    rng = np.random.default_rng(seed)
    if kind == "random":
        return rng.integers(0, q, n, dtype=np.uint64)
    if kind == "extreme":
        return rng.choice(np.array([0, 1, q - 1], np.uint64), n)
    return np.full(n, {"zero": 0, "one": 1, "top": q - 1}[kind], np.uint64)


KINDS = st.sampled_from(["random", "extreme", "zero", "one", "top"])


def forward(kernel: Any, path: str, q: int, x: U64) -> U64:
    out = np.empty_like(x)
    kernel.Ntt(len(x), q, path).forward(out, x)
    return out


def inverse(kernel: Any, path: str, q: int, x: U64) -> U64:
    out = np.empty_like(x)
    kernel.Ntt(len(x), q, path).inverse(out, x)
    return out


def schoolbook(a: U64, b: U64, q: int) -> U64:
    """a * b modulo X^n + 1 and q, on Python integers."""
    n = len(a)
    x, y = a.astype(object), b.astype(object)
    product = np.zeros(2 * n, object)
    for i, c in enumerate(x):
        product[i : i + n] += c * y
    return np.array((product[:n] - product[n:]) % q, dtype=np.uint64)


@pytest.mark.parametrize("bits", [17, 30, 49, 50, 51, 60])
def test_pointwise_product_is_the_negacyclic_product(kernel: Any, paths: list[str], bits: int) -> None:
    n, q = 1024, primes_below(1 << bits, 1024, 1)[0]
    a, b = residues(n, q, "random", 1), residues(n, q, "extreme", 2)
    expected = schoolbook(a, b, q)
    for path in paths:
        product = np.empty_like(a)
        kernel.Field(q, path).multiply(product, forward(kernel, path, q, a), forward(kernel, path, q, b))
        np.testing.assert_array_equal(inverse(kernel, path, q, product), expected)


@pytest.mark.parametrize("n", [4096, 8192, 16384, 32768])
@pytest.mark.parametrize("bits", [30, 49, 50, 60])
def test_bits_are_those_of_seal(kernel: Any, paths: list[str], n: int, bits: int) -> None:
    q = primes_below(1 << bits, n, 1)[0]
    polys = np.stack([residues(n, q, "random", n + bits), residues(n, q, "top", 0)])[:, None]
    ring = SealRing(n, [q])
    values = ring.forward(polys)
    np.testing.assert_array_equal(ring.round_trip(polys), polys)  # so SEAL's inverse of `values` is `polys`
    for path in paths:
        for coefficients, value in zip(polys[:, 0], values[:, 0], strict=True):
            np.testing.assert_array_equal(forward(kernel, path, q, coefficients), value)
            np.testing.assert_array_equal(inverse(kernel, path, q, value), coefficients)


@SETTINGS
@given(ring=rings(), kind=KINDS, seed=st.integers(0, 99))
def test_paths_agree_and_invert(kernel: Any, paths: list[str], ring: tuple[int, int], kind: str, seed: int) -> None:
    n, q = ring
    x = residues(n, q, kind, seed)
    values = forward(kernel, "portable", q, x)
    assert int(values.max()) < q
    back = inverse(kernel, "portable", q, x)  # any residues are values, too
    for path in paths:
        np.testing.assert_array_equal(forward(kernel, path, q, x), values)
        np.testing.assert_array_equal(inverse(kernel, path, q, x), back)
        np.testing.assert_array_equal(inverse(kernel, path, q, values), x)


@SETTINGS
@given(ring=rings(), kind=KINDS, seed=st.integers(0, 99), lift=st.integers(0, 3) | st.none())
def test_forward_takes_what_is_below_four_times_the_prime(
    kernel: Any, paths: list[str], ring: tuple[int, int], kind: str, seed: int, lift: int | None
) -> None:
    n, q = ring
    x = residues(n, q, kind, seed)
    multiple = np.random.default_rng(seed).integers(0, 4, n, dtype=np.uint64) if lift is None else np.uint64(lift)
    for path in paths:
        np.testing.assert_array_equal(
            forward(kernel, path, q, x + multiple * np.uint64(q)), forward(kernel, "portable", q, x)
        )


@pytest.mark.parametrize(("n", "count"), [(1024, 2), (32768, 4), (65536, 8)])
def test_values_that_grow_at_every_stage(kernel: Any, paths: list[str], n: int, count: int) -> None:
    """The first 2^-s of the values gain half the prime, with one sign, at each of the first s stages.

    Stage i adds root^(n / 2^i) times the coefficient n / 2^i further on; all other coefficients are zero. Values in
    floating point would leave their exact range here if they were not reduced in time; random ones hardly ever do. That
    shows when the next root is near half the prime, hence several primes.
    """
    for q in primes_below(1 << 50, n, count):
        tables = [kernel.Ntt(n, q, path) for path in paths]
        x, out = np.zeros(n, np.uint64), np.empty((len(paths), n), np.uint64)
        for half in (q // 2, q - q // 2):
            for stages in range(4, n.bit_length()):
                x[:] = 0
                width = n >> stages
                x[:width] = half
                for i in range(1, stages + 1):
                    x[n >> i : (n >> i) + width] = half * pow(tables[0].root, -(n >> i), q) % q
                for table, row in zip(tables, out, strict=True):
                    table.forward(row, x)
                    np.testing.assert_array_equal(row, out[0], err_msg=f"{table.path} {q} {stages}")


def test_values_are_those_at_odd_powers_of_the_least_root(kernel: Any, paths: list[str]) -> None:
    n, q = 1024, primes_below(1 << 50, 1024, 1)[0]
    x = residues(n, q, "random", 3)
    for path in paths:
        root = kernel.Ntt(n, q, path).root
        assert pow(root, n, q) == q - 1
        assert all(pow(root, k, q) >= root for k in range(1, 2 * n, 2))
        values = forward(kernel, path, q, x)
        for position in (0, 1, 2, 511, 1023):
            point = pow(root, 2 * int(f"{position:010b}"[::-1], 2) + 1, q)
            assert int(values[position]) == sum(int(c) * pow(point, i, q) for i, c in enumerate(x)) % q


def test_in_place_and_unaligned(kernel: Any, paths: list[str]) -> None:
    n, q = 2048, primes_below(1 << 50, 2048, 1)[0]
    x = residues(n, q, "random", 4)
    expected = forward(kernel, "portable", q, x)
    for path in paths:
        buffer = np.full(n + 2, 7, np.uint64)
        buffer[1:-1] = x
        ntt = kernel.Ntt(n, q, path)
        ntt.forward(buffer[1:-1], buffer[1:-1])
        np.testing.assert_array_equal(buffer[1:-1], expected)
        ntt.inverse(buffer[1:-1], buffer[1:-1])
        np.testing.assert_array_equal(buffer[1:-1], x)
        assert buffer[0] == buffer[-1] == 7


def test_wide_primes_take_the_portable_path(kernel: Any, paths: list[str]) -> None:
    narrow, wide = primes_below(1 << 50, 1024, 1)[0], primes_below(1 << 51, 1024, 1)[0]
    assert wide > 1 << 50
    for path in paths:
        assert kernel.Ntt(1024, narrow, path).path == kernel.Field(narrow, path).path == path
        assert kernel.Ntt(1024, wide, path).path == kernel.Field(wide, path).path == "portable"


Q = primes_below(1 << 50, 4096, 1)[0]


@pytest.mark.parametrize(
    ("n", "q", "path"),
    [
        (1000, Q, "portable"),
        (512, Q, "portable"),
        (131072, Q, "portable"),
        (4096, Q + 2, "portable"),  # not prime
        (4096, 1000003, "portable"),  # prime, not 1 modulo 2n
        (4096, (1 << 60) + 1, "portable"),
        (4096, 0, "portable"),
        (4096, 2, "portable"),
        (4096, Q, "sse"),
    ],
)
def test_refuses_impossible_rings(kernel: Any, n: int, q: int, path: str) -> None:
    with pytest.raises(ValueError):
        kernel.Ntt(n, q, path)


def test_refuses_what_is_not_a_residue_vector(kernel: Any, paths: list[str]) -> None:
    n = 4096
    good, out = np.zeros(n, np.uint64), np.empty(n, np.uint64)
    high = good.copy()
    high[-1] = 4 * Q
    sign = good.copy()
    sign[5] = 1 << 63
    bad = [
        good[:-8],
        np.zeros(n + 8, np.uint64),
        np.zeros(2 * n, np.uint64)[::2],
        np.zeros((1, n), np.uint64),
        np.zeros(n, np.int64),
        np.zeros(n, np.float64),
        high,
        sign,
    ]
    for path in paths:
        ntt = kernel.Ntt(n, Q, path)
        ntt.forward(out, good)
        for array in bad:
            for transform in (ntt.forward, ntt.inverse):
                with pytest.raises(ValueError):
                    transform(out, array)
        for array in bad[:6]:
            with pytest.raises(ValueError):
                ntt.forward(array, good)
        with pytest.raises(ValueError):
            ntt.inverse(out, np.full(n, Q, np.uint64))
        both = np.zeros(n + 8, np.uint64)
        with pytest.raises(ValueError, match="overlap"):
            ntt.forward(both[8:], both[:-8])


def run_default_path(value: str | None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "SECATEUR_KERNEL"}
    environment |= {} if value is None else {"SECATEUR_KERNEL": value}
    code = "import importlib; print(importlib.import_module('he_runtime.kernel._kernel').default_path())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_the_environment_forces_a_path(paths: list[str]) -> None:
    for path in paths:
        assert run_default_path(path).stdout.strip() == path
    assert run_default_path(None).stdout.strip() == paths[-1]
    for path in {"portable", "avx2", "ifma", "sse"} - set(paths):
        result = run_default_path(path)
        assert result.returncode != 0 and f"SECATEUR_KERNEL={path}" in result.stderr
