"""SEAL's own transforms and automorphisms on plain arrays: what tests and benchmarks compare the kernel with.

BFV ciphertexts hold polynomials in either form, so SEAL's evaluator transforms whatever residues we put into one. They
are not encryptions of anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import seal_format
from .seal_bridge import load_object, save_object, seal_minor, sealapi

__all__ = ["U64", "SealRing"]

U64 = npt.NDArray[np.uint64]


class SealRing:
    """Polynomials (2, limbs, n) modulo the given primes inside SEAL; with several primes the last one carries none."""

    def __init__(self, n: int, primes: list[int]) -> None:
        self._seal = sealapi()
        parms = self._seal.EncryptionParameters(self._seal.SCHEME_TYPE.BFV)
        parms.set_poly_modulus_degree(n)
        parms.set_coeff_modulus([self._seal.Modulus(q) for q in primes])
        parms.set_plain_modulus(self._seal.Modulus(2))
        self.context = self._seal.SEALContext(parms, True, self._seal.SEC_LEVEL_TYPE.NONE)
        assert self.context.parameters_set(), self.context.parameters_error_message()
        self.evaluator = self._seal.Evaluator(self.context)
        self.n, self.limbs = n, max(1, len(primes) - 1)

    def upload(self, polys: U64) -> Any:
        """A ciphertext of coefficients."""
        parms_id = tuple(self.context.first_parms_id())
        head = seal_format._CIPHERTEXT.pack(*parms_id, 0, len(polys), self.n, self.limbs, 1.0, 1)
        members = seal_format.ciphertext(parms_id, 1.0, list(polys), self.n, self.limbs, seal_minor())
        assert isinstance(members[0], bytes) and len(members[0]) == len(head)
        parts = seal_format.object_file([head, *members[1:]], seal_minor())
        return load_object(self._seal.Ciphertext(), self.context, parts)

    def download(self, ct: Any) -> U64:
        return seal_format.read_ciphertext(seal_format.body(save_object(ct)))[0].residues

    def forward(self, polys: U64) -> U64:
        ct = self.upload(polys)
        self.evaluator.transform_to_ntt_inplace(ct)
        return self.download(ct)

    def round_trip(self, polys: U64) -> U64:
        ct = self.upload(polys)
        self.evaluator.transform_to_ntt_inplace(ct)
        self.evaluator.transform_from_ntt_inplace(ct)
        return self.download(ct)
