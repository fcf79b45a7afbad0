"""CKKS parameters, checked: ring degree, prime chain, special primes, and the security gate.

The table is the classical column of the 2024 guidelines for 128-bit security with a ternary secret; it bounds
log2(Q * P) *including* the special primes, and is stricter than Microsoft SEAL's own limits.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .errors import ParameterError, Reason

__all__ = ["DEGREES", "MAX_LOG2_QP", "CkksParams", "find_primes", "is_prime"]

# Ring degree -> largest log2(Q * P) at 128-bit classical security, ternary secret (2024 guidelines).
MAX_LOG2_QP: dict[int, int] = {4096: 106, 8192: 214, 16384: 430, 32768: 868, 65536: 1747}

DEGREES = (4096, 8192, 16384, 32768)  # of the rings that plans are made for, by default

# Degrees that only tests may use. They have no row in the table, so they are insecure by construction.
_TEST_DEGREES = frozenset({1024, 2048})
_MAX_PRIME_BITS = 60  # SEAL's limit for a coefficient modulus
_MIN_PRIME_BITS = 17
_MAX_PRIMES = 64
_MILLER_RABIN_BASES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)  # exact for every n < 2^64


def is_prime(n: int) -> bool:
    """Exact primality for 0 <= n < 2^64 (Miller-Rabin with the twelve bases that suffice there)."""
    if n < 2 or n >= 1 << 64:
        return False
    for p in _MILLER_RABIN_BASES:
        if n % p == 0:
            return n == p
    d, r = n - 1, 0
    while d % 2 == 0:
        d, r = d // 2, r + 1
    for a in _MILLER_RABIN_BASES:
        x = pow(a, d, n)
        if x in (1, n - 1):
            continue
        for _ in range(r - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def find_primes(degree: int, bits: list[float]) -> list[int]:
    """Distinct primes 1 mod 2*degree, each at or below 2**bits of its entry (entries may be fractional).

    Searching downwards keeps the sum of the logarithms at or below sum(bits), so a budget in bits holds exactly.

    Raises ParameterError when the residue class runs out of primes.
    """
    step = 2 * degree
    taken: set[int] = set()
    found: list[int] = []
    for b in bits:
        candidate = (int(2.0**b) - 1) // step * step + 1
        while candidate in taken or not is_prime(candidate):
            candidate -= step
            if candidate < 1 << _MIN_PRIME_BITS:
                raise ParameterError(
                    f"cannot choose primes: got a request for {b:.1f} bits at N={degree}, need primes that are "
                    f"1 mod {step} above 2^{_MIN_PRIME_BITS}; try larger primes or a smaller N"
                )
        taken.add(candidate)
        found.append(candidate)
    return found


@dataclass(frozen=True)
class CkksParams:
    """A checked CKKS parameter set.

    `primes[i]` is dropped when going from level i to level i-1; level = number of live primes minus one.
    `special` primes are used in key switching only. Invalid values raise ParameterError; values outside the
    security table need `insecure=True`, and then `name` says INSECURE and servers and clients refuse them.
    """

    degree: int
    primes: tuple[int, ...]
    special: tuple[int, ...]
    insecure: bool = False

    def __post_init__(self) -> None:
        _check_shape(self)
        _check_primes(self)
        if not self.insecure:
            _check_security(self)

    @property
    def slots(self) -> int:
        return self.degree // 2

    @property
    def max_level(self) -> int:
        return len(self.primes) - 1

    @cached_property
    def log2_qp(self) -> float:
        return sum(math.log2(q) for q in (*self.primes, *self.special))

    def log2_q(self, level: int) -> float:
        """log2 of the product of the primes live at `level`."""
        return self._log2_q[min(level, self.max_level)] if level >= 0 else 0.0

    @cached_property
    def _log2_q(self) -> tuple[float, ...]:
        return tuple(itertools.accumulate(math.log2(q) for q in self.primes))

    @property
    def name(self) -> str:
        return f"{'INSECURE-' if self.insecure else ''}N{self.degree}-{len(self.primes)}+{len(self.special)}"

    def galois_element(self, step: int) -> int:
        """The element 3^step mod 2N that rotates the slots left by `step` (taken mod N/2)."""
        return pow(3, step % self.slots, 2 * self.degree)

    @property
    def conjugation_element(self) -> int:
        return 2 * self.degree - 1

    def to_json(self) -> dict[str, Any]:
        return {
            "degree": self.degree,
            "primes": list(self.primes),
            "special": list(self.special),
            "insecure": self.insecure,
        }

    @classmethod
    def from_json(cls, data: Any) -> CkksParams:
        try:
            return cls(
                int(data["degree"]),
                tuple(int(q) for q in data["primes"]),
                tuple(int(q) for q in data["special"]),
                bool(data.get("insecure", False)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ParameterError(
                f"cannot read parameters: {error!r} in the record; try the server's spec again"
            ) from error

    @cached_property
    def digest(self) -> str:
        """sha256 over the canonical JSON: what a secret key and an evaluation key are tied to."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _check_shape(params: CkksParams) -> None:
    known = params.degree in MAX_LOG2_QP or (params.insecure and params.degree in _TEST_DEGREES)
    if not known:
        raise ParameterError(
            f"cannot use ring degree N={params.degree}: need one of {sorted(MAX_LOG2_QP)}; "
            "smaller rings are for tests and must be marked insecure"
        )
    if not params.primes or not params.special or len(params.primes) + len(params.special) > _MAX_PRIMES:
        raise ParameterError(
            f"cannot use {len(params.primes)}+{len(params.special)} primes: need at least one live and one special "
            f"prime and at most {_MAX_PRIMES} in all"
        )


def _check_primes(params: CkksParams) -> None:
    every = (*params.primes, *params.special)
    for q in every:
        bits = q.bit_length()
        if not _MIN_PRIME_BITS <= bits <= _MAX_PRIME_BITS or q % (2 * params.degree) != 1 or not is_prime(q):
            shown = q if bits <= 64 else "above 2^64"
            raise ParameterError(
                f"cannot use modulus {shown} ({bits} bits): need a prime of {_MIN_PRIME_BITS} to {_MAX_PRIME_BITS} bits "
                f"that is 1 mod {2 * params.degree}"
            )
    if len(set(every)) != len(every):
        raise ParameterError("cannot use this chain: a prime occurs twice, need distinct primes")


def _check_security(params: CkksParams) -> None:
    limit = MAX_LOG2_QP[params.degree]
    if params.log2_qp > limit:
        raise ParameterError(
            f"cannot use this chain at N={params.degree}: log2(QP) is {params.log2_qp:.1f}, need at most {limit} for "
            "128-bit security; try fewer or smaller primes, or a larger N",
            Reason.PARAMETERS_INSECURE,
        )
