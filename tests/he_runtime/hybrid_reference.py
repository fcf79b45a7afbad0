"""Key switching on any gadget, and the noise inside a key, in Python integers: slow, plain, independent of the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from he_runtime import wire
from he_runtime.gadget import Gadget
from he_runtime.params import CkksParams
from he_runtime.ring import CiphertextData, KeyRecord, Poly, SeededPoly

Integers = npt.NDArray[np.object_]  # Python integers: (N,) coefficients, or (rows, N) residues


@cache
def roots(degree: int, q: int) -> Integers:
    """Entry k: psi^bitrev(k), psi the smallest primitive 2N-th root of unity modulo q."""
    generator = next(r for g in range(2, 1000) if pow(r := pow(g, (q - 1) // (2 * degree), q), degree, q) == q - 1)
    psi = min(pow(generator, k, q) for k in range(1, 2 * degree, 2))
    bits = degree.bit_length() - 1
    return np.array([pow(psi, int(f"{k:0{bits}b}"[::-1], 2), q) for k in range(degree)], dtype=object)


def evaluate(coefficients: Integers, q: int) -> Integers:
    """Coefficients (N,) -> evaluation form modulo q."""
    values: Integers = coefficients % q
    degree, m = len(coefficients), 1
    table = roots(degree, q)
    while m < degree:
        pairs = values.reshape(m, 2, -1)
        turned = pairs[:, 1] * table[m : 2 * m, None] % q
        values = np.stack([pairs[:, 0] + turned, pairs[:, 0] - turned], axis=1).reshape(-1) % q
        m *= 2
    return values


def interpolate(values: Integers, q: int) -> Integers:
    """Evaluation form modulo q -> coefficients (N,) in [0, q)."""
    degree, m, half = len(values), len(values) // 2, pow(2, -1, q)
    table = roots(degree, q)
    while m >= 1:
        inverse = np.array([pow(int(w), -1, q) for w in table[m : 2 * m]], dtype=object)[:, None]
        pairs = values.reshape(m, 2, -1)
        total, difference = pairs[:, 0] + pairs[:, 1], (pairs[:, 0] - pairs[:, 1]) * inverse
        values = np.stack([total, difference], axis=1).reshape(-1) * half % q
        m //= 2
    return values


def centred(rows: Integers, primes: Sequence[int]) -> Integers:
    """Residues in evaluation form (len(primes), N) -> the integer coefficients (N,) in [-Q/2, Q/2)."""
    modulus = math.prod(primes)
    result = np.zeros(rows.shape[1], dtype=object)
    for row, q in zip(rows, primes, strict=True):
        other = modulus // q
        result += interpolate(row, q) * (pow(other, -1, q) * other)
    return (result + modulus // 2) % modulus - modulus // 2


def turned(coefficients: Integers, element: int) -> Integers:
    """X -> X^element on coefficients."""
    degree = len(coefficients)
    target = np.arange(degree) * element % (2 * degree)
    result = np.zeros_like(coefficients)
    result[target % degree] = np.where(target < degree, coefficients, -coefficients)
    return result


def turned_rows(rows: Integers, primes: Sequence[int], element: int) -> Integers:
    return np.stack([evaluate(turned(interpolate(row, q), element), q) for row, q in zip(rows, primes, strict=True)])


def key_primes(params: CkksParams, level: int) -> tuple[int, ...]:
    return (*params.primes[: level + 1], *params.special)


def full_rows(poly: Poly, params: CkksParams, level: int) -> Integers:
    """A key polynomial's rows for its level, expanded from the whole key chain where it is a seed."""
    if isinstance(poly, SeededPoly):
        chain = wire.expand_seed(poly, (*params.primes, *params.special), params.degree)
        poly = chain[[*range(level + 1), *range(len(params.primes), len(chain))]]
    return poly.astype(object)


def switch(rows: Integers, level: int, key: KeyRecord, params: CkksParams) -> tuple[Integers, Integers]:
    """(c0, c1) at `level` with c0 + c1 s = rows * s' + noise: the inner product with `key`, divided by P."""
    primes = key_primes(params, level)
    modulus = np.array(primes, dtype=object)[:, None]
    own = [*range(level + 1), *range(key.level + 1, key.level + 1 + len(params.special))]
    sums = [np.zeros((len(primes), params.degree), dtype=object) for _ in range(2)]
    for d, digit in enumerate(Gadget.parse(key.gadget).digits(level)):
        value = centred(rows[digit.start : digit.stop], params.primes[digit.start : digit.stop])
        spread = np.stack([evaluate(value, q) for q in primes])
        for total, poly in zip(sums, key.digits[d], strict=True):
            total += spread * full_rows(poly, params, key.level)[own] % modulus
    c0, c1 = (divided(total % modulus, level, params) for total in sums)
    return c0, c1


def divided(rows: Integers, level: int, params: CkksParams) -> Integers:
    """Rows under the live primes and the special ones -> those of the quotient by P, rounded, under the live ones."""
    live, special = params.primes[: level + 1], math.prod(params.special)
    rest = centred(rows[level + 1 :], params.special)
    return np.stack([(rows[j] - evaluate(rest, q)) * pow(special, -1, q) % q for j, q in enumerate(live)])


def rotated(ct: CiphertextData, key: KeyRecord, params: CkksParams) -> CiphertextData:
    """`ct`, of two full polynomials, after X -> X^element and a key switch back to s."""
    live = params.primes[: ct.level + 1]
    c0, c1 = (turned_rows(full_rows(p, params, ct.level), live, key.element) for p in ct.polys)
    d0, d1 = switch(c1, ct.level, key, params)
    return _ciphertext(ct.level, ct.scale, c0 + d0, d1, live)


def squared(ct: CiphertextData, key: KeyRecord, params: CkksParams) -> CiphertextData:
    """The square of `ct`, of two full polynomials, relinearized."""
    live = params.primes[: ct.level + 1]
    c0, c1 = (full_rows(p, params, ct.level) for p in ct.polys)
    modulus = np.array(live, dtype=object)[:, None]
    d0, d1 = switch(c1 * c1 % modulus, ct.level, key, params)
    return _ciphertext(ct.level, ct.scale**2, c0 * c0 + d0, 2 * c0 * c1 + d1, live)


def _ciphertext(level: int, scale: float, c0: Integers, c1: Integers, live: Sequence[int]) -> CiphertextData:
    modulus = np.array(live, dtype=object)[:, None]
    return CiphertextData(level, scale, ((c0 % modulus).astype(np.uint64), (c1 % modulus).astype(np.uint64)))


def source_secret(secret: Integers, element: int, primes: Sequence[int]) -> Integers:
    """Rows of s' for the key of `element`: s^2 for 0, else s(X^element)."""
    if element:
        return turned_rows(secret, primes, element)
    square: Integers = secret * secret % np.array(primes, dtype=object)[:, None]
    return square


def key_noise(record: KeyRecord, params: CkksParams, secret: Integers) -> list[Integers]:
    """e_d = b_d + a_d s - P * [j in digit d] * s' of each digit, as integers; every row must tell the same one.

    `secret` are the rows of s under the whole key chain.
    """
    primes = key_primes(params, record.level)
    modulus = np.array(primes, dtype=object)[:, None]
    s = secret[[*range(record.level + 1), *range(len(params.primes), len(secret))]]
    moved = source_secret(s, record.element, primes)
    errors = []
    for digit, (b, a) in zip(Gadget.parse(record.gadget).digits(record.level), record.digits, strict=True):
        rows = full_rows(b, params, record.level) + full_rows(a, params, record.level) * s
        rows[digit.start : digit.stop] -= math.prod(params.special) * moved[digit.start : digit.stop]
        small = [(interpolate(row, q) + q // 2) % q - q // 2 for row, q in zip(rows % modulus, primes, strict=True)]
        assert all(np.array_equal(small[0], other) for other in small[1:]), "the rows are not of one polynomial"
        errors.append(small[0])
    return errors
