"""Public ring data as plain arrays: ciphertexts and evaluation keys outside any HE library.

Everything the wire carries, a store holds or a backend uploads has one of these types. Residues are in evaluation
form (negacyclic NTT with SEAL's minimal primitive 2N-th root, bit-reversed order). There is deliberately no type
for a secret key here: secrets never leave the client's own library objects and files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import KeyMismatch, Reason
from .gadget import SEAL, Gadget
from .params import CkksParams

__all__ = [
    "RELINEARIZATION",
    "CiphertextData",
    "EvaluationKeys",
    "KeyRecord",
    "KeyRequest",
    "KeySetSpec",
    "Poly",
    "PublicKeyData",
    "Residues",
    "SeededPoly",
]

Residues: TypeAlias = npt.NDArray[np.uint64]  # (limbs, N)


@dataclass(frozen=True)
class SeededPoly:
    """A uniform polynomial given by the seed of SEAL's generator instead of its residues; halves an upload.

    `limbs` counts the rows that the generator draws, one after the other: level + 1 in a ciphertext, and the whole key
    chain (every prime, then the special ones) in a key, also in one cut to a level, which then keeps only its own rows.
    """

    generator: Literal["blake2xb", "shake256"]
    seed: bytes  # 64 bytes
    limbs: int


Poly: TypeAlias = Residues | SeededPoly


@dataclass(frozen=True)
class CiphertextData:
    """A CKKS ciphertext: `polys` are c0, c1 (and c2 before relinearization), each (level + 1, N).

    Only the last polynomial may be seeded. `scale` is the exact plaintext scale.
    """

    level: int
    scale: float
    polys: tuple[Poly, ...]


@dataclass(frozen=True)
class PublicKeyData:
    """An encryption key: an encryption (b, a) of zero under every prime and the special ones, each (all of them, N)."""

    polys: tuple[Residues, Poly]


@dataclass(frozen=True)
class KeyRecord:
    """One key-switching key: digit i is (b_i, a_i), each (level + 1 + special primes, N). `he_runtime.gadget` defines it.

    `element` is the Galois element, or 0 for the relinearization key (switching s^2 -> s). The key serves
    ciphertexts at `level` and below: it holds Gadget.digit_count(level) digits (level + 1 on "seal"), with the live primes
    0..level and then the special primes (one on "seal"), in that order. Bytes: digits * 2 * rows * N * 8 in full, half that
    with seeded a_i.
    """

    element: int
    level: int
    digits: tuple[tuple[Residues, Poly], ...]
    gadget: str = SEAL


RELINEARIZATION = 0


@dataclass(frozen=True, order=True)
class KeyRequest:
    """A key that a plan needs: the element (0 for relinearization) and the highest level it is used at."""

    element: int
    level: int

    def byte_size(self, params: CkksParams, seeded: bool = False, gadget: str = SEAL) -> int:
        """Bytes of the key's residues on `gadget`; half of them when its a_i are seeds."""
        digits = Gadget.parse(gadget).digit_count(self.level)
        full = digits * 2 * (self.level + 1 + len(params.special)) * params.degree * 8
        return full // 2 if seeded else full


@dataclass(frozen=True)
class KeySetSpec:
    """The exact keys that a plan needs, and the gadget they are made on."""

    requests: tuple[KeyRequest, ...]
    gadget: str = SEAL

    def byte_size(self, params: CkksParams, seeded: bool = False) -> int:
        return sum(r.byte_size(params, seeded, self.gadget) for r in self.requests)


@dataclass(frozen=True)
class EvaluationKeys:
    """The evaluation keys of one client for one parameter set, by element."""

    params_digest: str
    records: dict[int, KeyRecord] = field(repr=False)

    def require(self, spec: KeySetSpec, params: CkksParams) -> None:
        """Raise KeyMismatch unless every key of `spec` is present, on its gadget, and reaches its level."""
        if self.params_digest != params.digest:
            raise KeyMismatch(
                f"cannot use these keys: made for parameters {self.params_digest[:12]}, need {params.digest[:12]}; "
                "try uploading keys made from the current client spec",
                Reason.KEY_PARAMETERS_DIFFER,
            )
        for request in spec.requests:
            record = self.records.get(request.element)
            if record is None or record.level < request.level:
                got = "no such key" if record is None else f"a key cut to level {record.level}"
                raise KeyMismatch(
                    f"cannot evaluate: got {got} for Galois element {request.element}, need one for level "
                    f"{request.level}; try uploading the key set that the client spec names"
                )
            if record.gadget != spec.gadget:
                raise KeyMismatch(
                    f"cannot evaluate: got a key on gadget {record.gadget!r} for Galois element {request.element}, need one "
                    f"on {spec.gadget!r}; try uploading the key set that the client spec names",
                    Reason.KEY_PARAMETERS_DIFFER,
                )
