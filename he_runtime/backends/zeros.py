"""Encryptions of zero at the key level: what SEAL makes, and what an evaluation key is built on.

Security rests on using each of them once. A zero is (b, a) with b + a s = e. A key on a hybrid gadget publishes
(b + P B s', a); whoever also sees (b, a), or another key made from it, subtracts and has P B s', and so the secret. So a
`Zero` gives its polynomials away once and never again; it cannot be copied, pickled, looked into or encoded.

Two sources draw them, because a SEAL without a `Serializable` encryption (a browser's) offers only public keys. All the
randomness is SEAL's. This is a secret-side module: servers never import it.
"""

from __future__ import annotations

from typing import Any, NoReturn, Protocol, SupportsIndex, final

import numpy as np

from ..errors import SecateurError
from ..params import CkksParams
from ..ring import Poly, Residues
from . import seal_bridge, seal_format

__all__ = ["PublicKeyZeros", "SymmetricZeros", "Zero", "ZeroSource"]


@final
class Zero:
    """One encryption of zero under every prime and the special ones, for a single use."""

    __slots__ = ("_polys",)

    def __init__(self, b: Residues, a: Poly) -> None:
        self._polys = [(b, a)]

    def consume(self) -> tuple[Residues, Poly]:
        """(b, a), each (primes + special primes, N), a perhaps as a seed; b is the caller's to write into.

        Raises SecateurError at every call but the first.
        """
        try:
            return self._polys.pop()  # atomic: of two threads one gets it
        except IndexError:
            raise SecateurError(
                "cannot use an encryption of zero twice: that would reveal the secret key; try drawing another"
            ) from None

    def __repr__(self) -> str:
        return "Zero(<redacted>)"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("cannot pickle or copy an encryption of zero: it is for a single use; try drawing another")

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        raise TypeError("cannot make an array of an encryption of zero: it is for a single use")


class ZeroSource(Protocol):
    """Draws fresh encryptions of zero under one secret key, each of them different and for one use."""

    def draw(self) -> Zero: ...


class SymmetricZeros:
    """Zeros from SEAL's symmetric encryption at the key level; a is a seed, so keys made of them are half as long."""

    def __init__(self, params: CkksParams, context: Any, secret: Any) -> None:
        self._params = params
        self._encryptor = seal_bridge.sealapi().Encryptor(context, secret)
        self._key_parms_id = context.key_parms_id()

    def draw(self) -> Zero:
        return _read(self._encryptor.encrypt_zero_symmetric(self._key_parms_id), self._params, seeded=True)


class PublicKeyZeros:
    """Zeros from SEAL's public keys, which are encryptions of zero; a comes in full."""

    def __init__(self, params: CkksParams, context: Any, secret: Any) -> None:
        self._params = params
        self._generator = seal_bridge.sealapi().KeyGenerator(context, secret)

    def draw(self) -> Zero:
        key = seal_bridge.sealapi().PublicKey()
        self._generator.create_public_key(key)
        return _read(key, self._params, seeded=False)


def _read(source: Any, params: CkksParams, *, seeded: bool) -> Zero:
    """The zero in a SEAL object; of the copies on the way only the returned one is left, and its user alters that."""
    limbs = len(params.primes) + len(params.special)
    saved = seal_bridge.save_object(source, secret=True)
    try:
        members = seal_format.private_body(saved, seal_format.ciphertext_bytes(2, limbs, params.degree, seeded))
    finally:
        saved[:] = bytes(len(saved))
    parsed, _ = seal_format.read_ciphertext(memoryview(members))
    b, a = parsed.polys
    assert isinstance(b, np.ndarray) and parsed.ntt
    return Zero(b, a)
