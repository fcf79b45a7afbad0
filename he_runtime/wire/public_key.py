"""A public encryption key on the wire. Body: its two polynomials under every prime and the special ones."""

from __future__ import annotations

import numpy as np

from ..errors import WireError
from ..params import CkksParams
from ..ring import Poly, PublicKeyData, SeededPoly
from .header import Buffer, Kind, open_object, pack_object
from .polys import pack_poly, read_poly
from .reader import Reader

__all__ = ["decode_public_key", "encode_public_key"]

_WHAT = "a public key"


def encode_public_key(key: PublicKeyData, params: CkksParams) -> bytes:
    """One object holding `key`; raises WireError when its polynomials do not fit `params`."""
    primes = (*params.primes, *params.special)
    b, a = key.polys
    _check_opaque(a)
    pieces = pack_poly(b, primes, params.degree, _WHAT) + pack_poly(a, primes, params.degree, _WHAT, len(primes))
    return pack_object(Kind.PUBLIC_KEY, params, pieces)


def decode_public_key(data: Buffer, params: CkksParams) -> PublicKeyData:
    """The key of an object, validated. Raises WireError, or KeyMismatch when made for other parameters."""
    primes = (*params.primes, *params.special)
    reader = Reader(open_object(data, Kind.PUBLIC_KEY, params), _WHAT)
    b = read_poly(reader, primes, params.degree)
    a = read_poly(reader, primes, params.degree, len(primes))
    reader.finish()
    assert not isinstance(b, SeededPoly)
    _check_opaque(a)
    return PublicKeyData((b, a))


def _check_opaque(a: Poly) -> None:
    if isinstance(a, np.ndarray) and not a.any():
        raise WireError(
            "cannot use a public key: got one whose second polynomial is zero, which would not encrypt; try another"
        )
