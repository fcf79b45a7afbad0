"""Polynomials on the wire: residues in full, or the seed that they are drawn from.

Eight bytes (form u32, limbs u32), then for form 0 the residues (limbs, N) as u64, and for forms 1 (blake2xb) and
2 (shake256) a seed of 64 bytes. `limbs` counts the rows that follow, or that the generator draws.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..errors import Reason, WireError
from ..ring import Poly, Residues, SeededPoly
from .header import Buffer
from .reader import Reader

__all__ = ["POLY_HEADER_BYTES", "SEED_BYTES", "pack_poly", "poly_bytes", "read_poly"]

_HEAD = struct.Struct("<II")
POLY_HEADER_BYTES = _HEAD.size
SEED_BYTES = 64
_FULL = 0
_FORMS: dict[str, int] = {"blake2xb": 1, "shake256": 2}
_GENERATORS: dict[int, Literal["blake2xb", "shake256"]] = {1: "blake2xb", 2: "shake256"}


def poly_bytes(limbs: int, degree: int, seeded: bool) -> int:
    """Exact size of one polynomial on the wire."""
    return POLY_HEADER_BYTES + (SEED_BYTES if seeded else limbs * degree * 8)


def _check_residues(rows: Residues, primes: Sequence[int], what: str) -> None:
    if (rows.max(axis=1) >= np.array(primes, dtype=np.uint64)).any():
        raise WireError(
            f"cannot use {what}: got a residue that is not below its prime; try making it again with the current parameters",
            Reason.RESIDUE_OUT_OF_RANGE,
        )


def _check_seed(allowed: bool, limbs: int, seed_limbs: int, what: str) -> None:
    if not allowed:
        raise WireError(
            f"cannot use {what}: got a seed, need residues in full; try a seed for its last polynomial only"
        )
    if limbs != seed_limbs:
        raise WireError(
            f"cannot use {what}: got a seed for {limbs} rows, need {seed_limbs}; try making it again with the current "
            "parameters",
            Reason.SIZE_MISMATCH,
        )


def read_poly(reader: Reader, primes: Sequence[int], degree: int, seed_limbs: int = 0) -> Poly:
    """A polynomial with one row under each of `primes`, or a seed for `seed_limbs` rows (0: no seed is allowed).

    Raises WireError for another form or number of rows, and for residues at or above their prime.
    """
    form, limbs = reader.unpack(_HEAD)
    if form in _GENERATORS:
        _check_seed(seed_limbs > 0, limbs, seed_limbs, reader.what)
        return SeededPoly(_GENERATORS[form], reader.take(SEED_BYTES), limbs)
    if form != _FULL:
        raise WireError(
            f"cannot read {reader.what}: got a polynomial of form {form}, need 0, 1 or 2; try this project's codec"
        )
    if limbs != len(primes):
        raise WireError(
            f"cannot read {reader.what}: got {limbs} residue rows, need {len(primes)}; try making it again with the "
            "current parameters",
            Reason.SIZE_MISMATCH,
        )
    rows = reader.words(limbs, degree)
    _check_residues(rows, primes, reader.what)
    return rows


def pack_poly(poly: Poly, primes: Sequence[int], degree: int, what: str, seed_limbs: int = 0) -> list[Buffer]:
    """The pieces of one polynomial; refuses with the same errors what `read_poly` would refuse."""
    if isinstance(poly, SeededPoly):
        _check_seed(seed_limbs > 0, poly.limbs, seed_limbs, what)
        if poly.generator not in _FORMS or len(poly.seed) != SEED_BYTES:
            raise WireError(
                f"cannot write {what}: got a seed of {len(poly.seed)} bytes, need {SEED_BYTES} of a known generator"
            )
        return [_HEAD.pack(_FORMS[poly.generator], poly.limbs), poly.seed]
    if not isinstance(poly, np.ndarray):
        raise WireError(f"cannot write {what}: got {type(poly).__name__}, need residues or a seed")
    if poly.shape != (len(primes), degree) or poly.dtype != np.uint64:
        raise WireError(
            f"cannot write {what}: got residues {poly.dtype} {poly.shape}, need uint64 {(len(primes), degree)}",
            Reason.SIZE_MISMATCH,
        )
    _check_residues(poly, primes, what)
    return [_HEAD.pack(_FULL, len(primes)), np.ascontiguousarray(poly, dtype="<u8").data.cast("B")]
