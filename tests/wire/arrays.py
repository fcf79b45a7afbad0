"""Ring data from fixed formulas, at INSECURE parameters small enough for any test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from he_runtime.gadget import Gadget
from he_runtime.params import CkksParams, find_primes
from he_runtime.ring import CiphertextData, KeyRecord, Poly, PublicKeyData, Residues, SeededPoly

DEGREE = 1024
_PRIMES = find_primes(DEGREE, [30, 25, 25, 36])
PARAMS = CkksParams(DEGREE, tuple(_PRIMES[:3]), tuple(_PRIMES[3:]), insecure=True)
OTHER = CkksParams(DEGREE, tuple(_PRIMES[:2]), tuple(_PRIMES[3:]), insecure=True)
CHAIN = len(PARAMS.primes) + 1
# Three live primes in digits of two, so that the second digit is short, and special primes that cover the larger one.
HYBRID_PARAMS = CkksParams(DEGREE, tuple(_PRIMES[:3]), tuple(find_primes(DEGREE, [36, 36])), insecure=True)
HYBRID = "hybrid-2"


def residues(primes: Sequence[int], salt: int) -> Residues:
    """Row r, column c: ((r * 1024 + c + 1) * 2654435761 + salt) mod primes[r]."""
    counter = np.arange(1, len(primes) * DEGREE + 1, dtype=np.uint64).reshape(len(primes), DEGREE)
    return (counter * np.uint64(2654435761) + np.uint64(salt)) % np.array(primes, dtype=np.uint64)[:, None]


def seed(limbs: int, salt: int, generator: str = "blake2xb") -> SeededPoly:
    """Seed byte i: (7 * i + salt) mod 256."""
    raw = bytes((7 * i + salt) % 256 for i in range(64))
    return SeededPoly("blake2xb" if generator == "blake2xb" else "shake256", raw, limbs)


def ciphertext(level: int, scale: float = 2.0**20, size: int = 2, generator: str = "", salt: int = 0) -> CiphertextData:
    primes = PARAMS.primes[: level + 1]
    polys: list[Poly] = [residues(primes, salt + i) for i in range(size)]
    if generator:
        polys[-1] = seed(level + 1, salt, generator)
    return CiphertextData(level, scale, tuple(polys))


def key(
    element: int, level: int, seeded: bool, salt: int = 0, params: CkksParams = PARAMS, gadget: str = "seal"
) -> KeyRecord:
    rows = (*params.primes[: level + 1], *params.special)
    chain = len(params.primes) + len(params.special)
    digits: list[tuple[Residues, Poly]] = []
    for i in range(Gadget.parse(gadget).digit_count(level)):
        a: Poly = seed(chain, salt + i) if seeded else residues(rows, salt + 2 * i + 1)
        digits.append((residues(rows, salt + 2 * i), a))
    return KeyRecord(element, level, tuple(digits), gadget)


def hybrid_key(element: int, level: int, seeded: bool, salt: int = 0) -> KeyRecord:
    return key(element, level, seeded, salt, HYBRID_PARAMS, HYBRID)


def public_key(seeded: bool, salt: int = 0) -> PublicKeyData:
    rows = (*PARAMS.primes, *PARAMS.special)
    return PublicKeyData((residues(rows, salt), seed(CHAIN, salt) if seeded else residues(rows, salt + 1)))


def resealed(data: bytes, edit: Callable[[bytearray], object], covered: int | None = None) -> bytes:
    """`data` after `edit`, with the digest that its sender would have put there: the next check has to catch it."""
    edited = bytearray(data)
    edit(edited)
    end = len(edited) if covered is None else 80 + covered
    edited[48:80] = hashlib.sha256(edited[:48] + edited[80:end]).digest()
    return bytes(edited)


def same_poly(left: Poly, right: Poly) -> bool:
    if isinstance(left, SeededPoly) or isinstance(right, SeededPoly):
        return left == right
    return np.array_equal(left, right)
