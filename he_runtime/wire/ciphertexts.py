"""Ciphertexts on the wire: several of one parameter set in one object.

Body: count u32, N u32, then each ciphertext: level u32, number of polynomials u32, scale f64, the polynomials.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np

from ..errors import CiphertextMismatch, Reason, WireError
from ..params import CkksParams
from ..ring import CiphertextData, Poly
from .header import HEADER_BYTES, Buffer, Kind, open_object, pack_object
from .polys import pack_poly, poly_bytes, read_poly
from .reader import Reader

__all__ = ["ciphertexts_byte_size", "decode_ciphertexts", "encode_ciphertexts"]

_BODY = struct.Struct("<II")
_HEAD = struct.Struct("<IId")
_WHAT = "a ciphertext"
_TRY = "try encrypting by the client spec"


def ciphertexts_byte_size(count: int, level: int, params: CkksParams, *, polys: int = 2, seeded: bool = False) -> int:
    """Exact size of an object of `count` ciphertexts at `level`; `seeded` replaces the last polynomial by its seed."""
    limbs = level + 1
    each = _HEAD.size + sum(poly_bytes(limbs, params.degree, seeded and i == polys - 1) for i in range(polys))
    return HEADER_BYTES + _BODY.size + count * each


def _check(level: int, scale: float, size: int, params: CkksParams) -> None:
    if not 0 <= level <= params.max_level:
        raise CiphertextMismatch(
            f"cannot use a ciphertext: got level {level}, need 0 to {params.max_level}; {_TRY}", Reason.LEVEL_MISMATCH
        )
    if size not in (2, 3):
        raise CiphertextMismatch(
            f"cannot use a ciphertext: got {size} polynomials, need 2 or 3; {_TRY}", Reason.SIZE_MISMATCH
        )
    if not math.isfinite(scale) or scale < 1 or math.log2(scale) > params.log2_q(level):
        raise CiphertextMismatch(
            f"cannot use a ciphertext: got a scale of {scale!r}, need a finite one from 1 to the modulus of level {level}, "
            f"2^{params.log2_q(level):.1f}; {_TRY}",
            Reason.SCALE_MISMATCH,
        )


def _check_opaque(polys: Sequence[Poly]) -> None:
    """Refuse a transparent ciphertext: its c0 is the plaintext, for anyone to read."""
    if not any(not isinstance(p, np.ndarray) or p.any() for p in polys[1:]):
        raise WireError(
            "cannot use a ciphertext: got a transparent one, whose polynomials after the first are zero; try encrypting it"
        )


def encode_ciphertexts(cts: Sequence[CiphertextData], params: CkksParams) -> bytes:
    """One object holding `cts` in order. Raises what `decode_ciphertexts` would raise for it."""
    pieces: list[Buffer] = [_BODY.pack(len(cts), params.degree)]
    for ct in cts:
        _check(ct.level, ct.scale, len(ct.polys), params)
        _check_opaque(ct.polys)
        primes = params.primes[: ct.level + 1]
        pieces.append(_HEAD.pack(ct.level, len(ct.polys), ct.scale))
        for index, poly in enumerate(ct.polys):
            pieces += pack_poly(
                poly, primes, params.degree, _WHAT, len(primes) if index == 1 == len(ct.polys) - 1 else 0
            )
    return pack_object(Kind.CIPHERTEXTS, params, pieces)


def decode_ciphertexts(data: Buffer, params: CkksParams, *, max_count: int) -> list[CiphertextData]:
    """The ciphertexts of an object, validated; their residues are views of `data`, which must not change any more.

    Raises WireError (malformed, truncated, digest, residues, more than `max_count`), ParameterError (other parameters)
    or CiphertextMismatch (level, scale or size that the parameters do not allow).
    """
    reader = Reader(open_object(data, Kind.CIPHERTEXTS, params), "ciphertexts")
    count, degree = reader.unpack(_BODY)
    if count > max_count:
        raise WireError(
            f"cannot read ciphertexts: got {count}, need at most {max_count}; try packing by the client spec",
            Reason.LIMIT_EXCEEDED,
        )
    if degree != params.degree:
        raise WireError(
            f"cannot read ciphertexts: got N={degree}, need N={params.degree}; {_TRY}", Reason.SIZE_MISMATCH
        )
    cts = [_read(reader, params) for _ in range(count)]
    reader.finish()
    return cts


def _read(reader: Reader, params: CkksParams) -> CiphertextData:
    level, size, scale = reader.unpack(_HEAD)
    _check(level, scale, size, params)
    primes = params.primes[: level + 1]
    polys = tuple(
        read_poly(reader, primes, params.degree, len(primes) if index == 1 == size - 1 else 0) for index in range(size)
    )
    _check_opaque(polys)
    return CiphertextData(level, scale, polys)
