"""Primes for transforms."""

from __future__ import annotations

from he_runtime.params import is_prime


def primes_below(limit: int, n: int, count: int) -> list[int]:
    """The `count` largest primes below `limit` that are 1 modulo 2n."""
    step = 2 * n
    candidate, found = (limit - 2) // step * step + 1, []
    while len(found) < count and candidate > step:
        if is_prime(candidate):
            found.append(candidate)
        candidate -= step
    if len(found) < count:
        raise ValueError(f"cannot find {count} primes below {limit} that are 1 modulo {step}")
    return found
