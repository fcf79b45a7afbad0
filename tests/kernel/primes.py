"""Primes for transforms."""

from __future__ import annotations


def is_prime(x: int) -> bool:
    """Miller-Rabin with witnesses that decide every 64-bit integer."""
    witnesses = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if x < 2 or any(x % p == 0 for p in witnesses):
        return x in witnesses
    odd, twos = x - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for p in witnesses:
        y = pow(p, odd, x)
        if y in (1, x - 1):
            continue
        for _ in range(twos - 1):
            y = y * y % x
            if y == x - 1:
                break
        else:
            return False
    return True


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
