"""Gadgets of key switching: how the live primes are cut into digits, and what a key on each gadget holds.

Key switching turns a product c * s' into one under s. It writes c in digits, c = sum_d [c]_{D_d} * B_d modulo Q, and takes
the inner product of the digits with a key that encrypts P * B_d * s' under s, P being the product of the special primes;
dividing by P then shrinks the noise that the digits multiplied. Source: K. Han and D. Ki, "Better bootstrapping for
approximate homomorphic encryption", section 3; Microsoft SEAL's own keys are the case of one prime per digit and one
special prime.

Digit d at level l is the product D_d of the primes of the d-th group, primes 0..l being cut into consecutive groups of
`alpha` from index 0 (the last may be shorter). In residues P * B_d is simple: P modulo q_j for j in digit d, and 0 in every
other row, special ones included. So a key for (element, level) holds digit_count(level) pairs (b_d, a_d) whose rows are
primes 0..level, then every special prime, with

    b_d = -a_d s + e_d + P * [j in digit d] * s'  modulo the prime of row j

where s' is s^2 for the relinearization key and s(X^g) for Galois element g. A key cut to a level serves every level below
it too: a digit that loses its last primes keeps its B_d on those that are left.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .errors import BackendUnavailable, ParameterError, Reason
from .params import CkksParams

__all__ = ["MAX_ALPHA", "SEAL", "Gadget", "require_seal"]

SEAL = "seal"
MAX_ALPHA = 63  # a chain has at most 64 primes, one of them special
_HYBRID = re.compile(r"hybrid-([1-9][0-9]?)")


@dataclass(frozen=True)
class Gadget:
    """A gadget: its name, "seal" or "hybrid-A", and its digit size alpha in primes. Make it with `parse`."""

    name: str
    alpha: int

    @classmethod
    def parse(cls, text: object) -> Gadget:
        """The gadget called `text`; ParameterError (VERSION_UNKNOWN) unless that is "seal" or "hybrid-1" to "hybrid-63"."""
        if text == SEAL:
            return cls(SEAL, 1)
        match = _HYBRID.fullmatch(text) if isinstance(text, str) else None
        if match is None or int(match[1]) > MAX_ALPHA:
            raise ParameterError(
                f"cannot use gadget {repr(text)[:40]}: need 'seal', or 'hybrid-1' to 'hybrid-{MAX_ALPHA}'; try a client "
                "and a server of one release",
                Reason.VERSION_UNKNOWN,
            )
        return cls(match.string, int(match[1]))

    def digit_count(self, level: int) -> int:
        """Digits of a ciphertext at `level`, and pairs of a key cut to it."""
        return -(-(level + 1) // self.alpha)

    def digits(self, level: int) -> tuple[range, ...]:
        """The indices of the primes of each digit at `level`; together they are 0..level."""
        live = level + 1
        return tuple(range(k, min(k + self.alpha, live)) for k in range(0, live, self.alpha))

    def check(self, params: CkksParams) -> None:
        """Raise ParameterError unless `params` have the special primes that this gadget needs.

        "seal" has exactly one. On "hybrid-A" the product P of all of them must be at least the largest digit, for every
        group of the full chain: else division by P would not shrink what the digits add to the noise.
        """
        if self.name == SEAL:
            if len(params.special) != 1:
                raise ParameterError(
                    f"cannot use gadget 'seal' with {len(params.special)} special primes: it has exactly 1; try a plan "
                    "on a hybrid gadget"
                )
            return
        special = math.prod(params.special)
        largest = max(math.prod(params.primes[j] for j in digit) for digit in self.digits(params.max_level))
        if special < largest:
            raise ParameterError(
                f"cannot use gadget {self.name!r}: got special primes of 2^{math.log2(special):.2f} in all, need at least "
                f"the largest digit, 2^{math.log2(largest):.2f}; try special primes above the others, more of them, or smaller digits"
            )

    def __str__(self) -> str:
        return self.name


def require_seal(gadget: str, backend: str) -> None:
    """Raise BackendUnavailable unless a plan on `gadget` can run on a backend that evaluates with SEAL."""
    if gadget != SEAL:
        raise BackendUnavailable(
            f"cannot run a plan on gadget {gadget!r} with the {backend} backend: SEAL switches keys on 'seal' alone, so "
            "this plan needs the native backend; try that one, or planning for gadget 'seal'"
        )
