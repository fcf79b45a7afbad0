"""Ring data <-> objects of Pyfhel, through the SEAL files that `seal_format` writes.

Pyfhel embeds another release of SEAL than TenSEAL does. The two refuse each other's file headers, but agree on
everything below them: parameter identifiers, residue order, key layout and the expansion of seeds.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import BackendUnavailable, CiphertextMismatch, KeyMismatch, ParameterError, Reason
from ..params import CkksParams
from ..ring import RELINEARIZATION, CiphertextData, KeyRecord
from . import seal_format
from .seal_bridge import load_object
from .seal_format import ParmsId, Parts

__all__ = ["PyfhelContext", "galois_permutation", "make_context", "seal_parms_id"]

_CKKS = 2  # SEAL's number of the scheme
_HEADER_BYTES = 16
_MINOR_OFFSET = 4  # of the minor version in a header
_PLAINTEXT = struct.Struct("<4QQd")  # parms id, coefficients, scale
_COUNT = struct.Struct("<Q")
_NTT_FILE_MODE = "none"  # the only compression that a build without zlib and Zstandard knows


def pyfhel() -> Any:
    """The module Pyfhel; BackendUnavailable with the way to install it when it is missing."""
    try:
        return importlib.import_module("Pyfhel")
    except ImportError as error:
        raise BackendUnavailable(
            "cannot use the pyfhel backend: Pyfhel is not installed; try `make pyfhel`, which runs pip install "
            "Pyfhel==3.5.0 with CMAKE_TOOLCHAIN_FILE=cmake/pyfhel-seal.cmake"
        ) from error


def seal_parms_id(degree: int, primes: tuple[int, ...]) -> ParmsId:
    """SEAL's identifier of a modulus: blake2b-256 over scheme, degree, primes and a zero plain modulus."""
    words = (_CKKS, degree, *primes, 0)
    digest = hashlib.blake2b(struct.pack(f"<{len(words)}Q", *words), digest_size=32).digest()
    a, b, c, d = struct.unpack("<4Q", digest)
    return a, b, c, d


def galois_permutation(degree: int, element: int) -> npt.NDArray[np.int64]:
    """Index p with sigma_element(x) = x[p] for residues (N,) in evaluation form (bit-reversed order)."""
    bits = degree.bit_length() - 1

    def reverse(values: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.int64]:
        result = np.zeros_like(values)
        for _ in range(width):
            result = (result << 1) | (values & 1)
            values = values >> 1
        return result

    # Position i holds the value at the odd power 2 * reverse(i) + 1 of the root.
    powers = reverse(np.arange(degree, 2 * degree, dtype=np.int64), bits + 1)
    return reverse(((element * powers) >> 1) & (degree - 1), bits)


class _LoadFrom:
    """Gives a Pyfhel loading function the method that `load_object` calls."""

    def __init__(self, function: Callable[[str], object]) -> None:
        self._function = function

    def load(self, _: Any, path: str) -> None:
        self._function(path)


def _join(parts: Parts) -> bytes:
    return b"".join(bytes(part) for part in parts)


@dataclass(frozen=True)
class PyfhelContext:
    """A Pyfhel instance for exactly these parameters, and what files for it need. It holds no secret of ours."""

    params: CkksParams
    he: Any
    minor: int  # of the embedded SEAL release
    parms_ids: tuple[ParmsId, ...]  # by level

    def upload_ciphertext(self, data: CiphertextData) -> Any:
        """A PyCtxt holding `data`; SEAL expands a seed. Raises CiphertextMismatch when level or shapes do not fit."""
        self._check_shape(data)
        members = seal_format.ciphertext(
            self.parms_ids[data.level], data.scale, data.polys, self.params.degree, data.level + 1, self.minor
        )
        target = pyfhel().PyCtxt(pyfhel=self.he)
        target.from_bytes(_join(seal_format.object_file(members, self.minor)))
        return target

    def download_ciphertext(self, ct: Any) -> CiphertextData:
        parsed, _ = seal_format.read_ciphertext(seal_format.body(ct.to_bytes(_NTT_FILE_MODE)))
        return CiphertextData(parsed.residues.shape[1] - 1, parsed.scale, parsed.polys)

    def encode(self, vector: npt.NDArray[np.float64], level: int, scale: float) -> Any:
        """A PyPtxt of `vector` (slots,), or of one constant (1,), at a level and an exact scale."""
        if len(vector) == 1:
            return self._encode_constant(float(vector[0]), level, scale)
        plain = self.he.encodeFrac(np.ascontiguousarray(vector), scale=scale)
        # Pyfhel encodes at the top level only; dropping limbs keeps the same integer coefficients.
        for _ in range(self.params.max_level - level):
            plain = self.he.mod_switch_to_next_ptxt(plain, True)
        return plain

    def _encode_constant(self, value: float, level: int, scale: float) -> Any:
        """A constant is its rounded integer in every residue: exact, and without a transform."""
        scaled = value * scale
        integer = int(math.copysign(math.floor(abs(scaled) + 0.5), scaled))
        degree, primes = self.params.degree, self.params.primes[: level + 1]
        residues = np.repeat(np.array([integer % q for q in primes], dtype="<u8"), degree)
        array = seal_format.object_file([_COUNT.pack(residues.size), residues.data.cast("B")], self.minor)
        head = _PLAINTEXT.pack(*self.parms_ids[level], residues.size, scale)
        target = pyfhel().PyPtxt(pyfhel=self.he)
        target.from_bytes(_join(seal_format.object_file([head, *array], self.minor)))
        return target

    def load_keys(self, galois: Mapping[int, KeyRecord], relin: KeyRecord | None) -> None:
        """Put the keys into this instance. `galois` maps the element under which SEAL will look to the record used."""
        degree, limbs = self.params.degree, len(self.params.primes) + 1
        key_parms = seal_parms_id(degree, (*self.params.primes, *self.params.special))

        def load(function: Callable[[str], object], keys: dict[int, Any], slots: int) -> None:
            members = seal_format.key_switch(key_parms, keys, slots, degree, limbs, self.minor)
            load_object(_LoadFrom(function), None, seal_format.object_file(members, self.minor))

        if galois:
            indexed = {(element - 1) // 2: record.digits for element, record in galois.items()}
            load(self.he.load_rotate_key, indexed, degree)
        if relin is not None:
            load(self.he.load_relin_key, {RELINEARIZATION: relin.digits}, 1)

    def _check_shape(self, data: CiphertextData) -> None:
        limbs, degree = data.level + 1, self.params.degree
        if not 0 <= data.level <= self.params.max_level or not 2 <= len(data.polys) <= 3:
            raise CiphertextMismatch(
                f"cannot use a ciphertext at level {data.level} with {len(data.polys)} polynomials: need level 0 to "
                f"{self.params.max_level} and 2 or 3 polynomials",
                Reason.LEVEL_MISMATCH if len(data.polys) in (2, 3) else Reason.SIZE_MISMATCH,
            )
        for index, poly in enumerate(data.polys):
            seeded_last = index == 1 == len(data.polys) - 1
            fits = (
                poly.shape == (limbs, degree) if isinstance(poly, np.ndarray) else seeded_last and poly.limbs == limbs
            )
            if not fits:
                raise CiphertextMismatch(
                    f"cannot use a polynomial: need ({limbs}, {degree}) residues or their seed", Reason.SIZE_MISMATCH
                )


def check_keys(params: CkksParams, records: Mapping[int, KeyRecord]) -> None:
    """Raise KeyMismatch unless every record has the digits and limbs of its level on the SEAL gadget."""
    for record in records.values():
        live, limbs = record.level + 1, len(params.primes) + 1
        shape = (live + 1, params.degree)
        fits = record.gadget == "seal" and record.level <= params.max_level and len(record.digits) == live
        for b, a in record.digits:
            fits &= b.shape == shape and (a.shape == shape if isinstance(a, np.ndarray) else a.limbs == limbs)
        if not fits:
            raise KeyMismatch(
                f"cannot use the key for element {record.element}: its digits do not fit {params.name} at level "
                f"{record.level}; try uploading keys made from the current client spec",
                Reason.KEY_PARAMETERS_DIFFER,
            )


def make_context(params: CkksParams) -> PyfhelContext:
    """A Pyfhel instance on exactly these primes. SEAL's own security check is off: CkksParams is the gate.

    Raises ParameterError for what SEAL rejects, BackendUnavailable without Pyfhel or with one whose SEAL names
    parameters differently.
    """
    if len(params.special) != 1:
        raise ParameterError(
            f"cannot use {len(params.special)} special primes with SEAL: its key switching has exactly 1; "
            "try a plan on the 'seal' gadget"
        )
    he = pyfhel().Pyfhel()
    verdict = str(
        # A default scale above 1 keeps Pyfhel from warning of a missing one; every encoding states its own.
        he.contextGen(scheme="ckks", n=params.degree, sec=0, qi=[*params.primes, *params.special], scale=2.0)
    )
    if not verdict.startswith("success"):
        raise ParameterError(f"cannot use {params.name} with Pyfhel: {verdict}")
    parms_ids = tuple(seal_parms_id(params.degree, params.primes[: level + 1]) for level in range(len(params.primes)))
    # One encoding tells the release of the embedded SEAL, and that it identifies parameters as we do.
    sample = he.encodeFrac(np.ones(1), scale=2.0).to_bytes(_NTT_FILE_MODE)
    if struct.unpack_from("<4Q", sample, _HEADER_BYTES) != parms_ids[-1]:
        raise BackendUnavailable(
            "cannot use the pyfhel backend: this Pyfhel identifies parameters in an unknown way; try Pyfhel==3.5.0"
        )
    return PyfhelContext(params, he, sample[_MINOR_OFFSET], parms_ids)
