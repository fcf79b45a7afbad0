"""One evaluation key on the wire: a relinearization or Galois key, cut to the level that it serves.

Body: Galois element u32 (0 for relinearization), level u32, gadget u16 (1: seal, 2: hybrid), digit size alpha u16 (0 on
seal), digits u32, then each digit's two polynomials b_i and a_i. Rows are under primes 0..level, then the special primes.
The a_i are all in full or all seeds; a seed draws rows for the whole key chain, of which the key keeps its own.
"""

from __future__ import annotations

import struct

import numpy as np

from ..errors import KeyMismatch, ParameterError, Reason, WireError
from ..gadget import MAX_ALPHA, SEAL, Gadget
from ..params import CkksParams
from ..ring import RELINEARIZATION, KeyRecord, Poly, Residues, SeededPoly
from .header import HEADER_BYTES, Buffer, Kind, open_object, pack_object
from .polys import pack_poly, poly_bytes, read_poly
from .reader import Reader

__all__ = ["check_request", "decode_key", "encode_key", "key_byte_size"]

_HEAD = struct.Struct("<IIHHI")
_SEAL, _HYBRID = 1, 2


def key_byte_size(level: int, params: CkksParams, seeded: bool, gadget: str = SEAL) -> int:
    """Exact size of the object of one key on `gadget` at `level`."""
    limbs = level + 1 + len(params.special)
    digit = poly_bytes(limbs, params.degree, False) + poly_bytes(limbs, params.degree, seeded)
    return HEADER_BYTES + _HEAD.size + Gadget.parse(gadget).digit_count(level) * digit


def check_request(element: int, level: int, params: CkksParams, gadget: str = SEAL) -> None:
    """Raise WireError unless the parameters have such a Galois element (0: relinearization) and level.

    Raises KeyMismatch when they do not have the special primes that `gadget` needs.
    """
    if element != RELINEARIZATION and not (element % 2 == 1 and 1 < element < 2 * params.degree):
        raise WireError(
            f"cannot use a key: got Galois element {element}, need 0, or an odd number from 3 to {2 * params.degree - 1}; "
            "try the elements of the client spec"
        )
    if not 0 <= level <= params.max_level:
        raise WireError(
            f"cannot use a key: got level {level}, need 0 to {params.max_level}; try the levels of the client spec",
            Reason.LEVEL_MISMATCH,
        )
    try:
        Gadget.parse(gadget).check(params)
    except ParameterError as error:
        raise KeyMismatch(f"cannot use a key: {error.message}", Reason.KEY_PARAMETERS_DIFFER) from error


def _read_gadget(code: int, alpha: int) -> Gadget:
    if code == _SEAL and alpha == 0:
        return Gadget.parse(SEAL)
    if code == _HYBRID and 1 <= alpha <= MAX_ALPHA:
        return Gadget.parse(f"hybrid-{alpha}")
    raise WireError(
        f"cannot use a key: got gadget {code} with digits of {alpha} primes, need 1 ('seal') with 0, or 2 ('hybrid') with "
        f"1 to {MAX_ALPHA}; try client and server of one release",
        Reason.VERSION_UNKNOWN,
    )


def _rows(level: int, params: CkksParams) -> tuple[int, ...]:
    return (*params.primes[: level + 1], *params.special)


def _chain(params: CkksParams) -> int:
    return len(params.primes) + len(params.special)


def _check_forms(digits: list[tuple[Residues, Poly]], what: str) -> None:
    if len({isinstance(a, SeededPoly) for _, a in digits}) != 1:
        raise WireError(
            f"cannot use {what}: got some of its a_i as seeds and some in full, need one form; try making it again"
        )
    if any(isinstance(a, np.ndarray) and not a.any() for _, a in digits):
        raise WireError(
            f"cannot use {what}: got an a_i of zero, which would publish what it should hide; try making it again"
        )


def encode_key(record: KeyRecord, params: CkksParams) -> bytes:
    """One object holding `record`. Raises what `decode_key` would raise for it."""
    what = f"the key for element {record.element}"
    check_request(record.element, record.level, params, record.gadget)
    gadget = Gadget.parse(record.gadget)
    count = gadget.digit_count(record.level)
    if len(record.digits) != count:
        raise WireError(
            f"cannot write {what}: got {len(record.digits)} digits, need {count} on gadget {gadget.name!r}",
            Reason.SIZE_MISMATCH,
        )
    _check_forms(list(record.digits), what)
    primes = _rows(record.level, params)
    code = (_SEAL, 0) if gadget.name == SEAL else (_HYBRID, gadget.alpha)
    pieces: list[Buffer] = [_HEAD.pack(record.element, record.level, *code, count)]
    for b, a in record.digits:
        pieces += pack_poly(b, primes, params.degree, what)
        pieces += pack_poly(a, primes, params.degree, what, _chain(params))
    return pack_object(Kind.KEY, params, pieces)


def decode_key(data: Buffer, params: CkksParams) -> KeyRecord:
    """The key of an object, validated; its residues are views of `data`, which must not change any more.

    Raises WireError (malformed, truncated, digest, residues, element, level, gadget), or KeyMismatch when it was made for
    other parameters, or on a gadget that these do not have.
    """
    reader = Reader(open_object(data, Kind.KEY, params), "an evaluation key")
    element, level, code, alpha, count = reader.unpack(_HEAD)
    gadget = _read_gadget(code, alpha)
    check_request(element, level, params, gadget.name)
    if count != gadget.digit_count(level):
        raise WireError(
            f"cannot use a key: got {count} digits, need {gadget.digit_count(level)} at level {level}; try making it again",
            Reason.SIZE_MISMATCH,
        )
    primes = _rows(level, params)
    digits: list[tuple[Residues, Poly]] = []
    for _ in range(count):
        b = read_poly(reader, primes, params.degree)
        assert not isinstance(b, SeededPoly)
        digits.append((b, read_poly(reader, primes, params.degree, _chain(params))))
    reader.finish()
    _check_forms(digits, "an evaluation key")
    return KeyRecord(element, level, tuple(digits), gadget.name)
