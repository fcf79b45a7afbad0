"""The secret side of the SEAL backends: key generation, encryption and decryption, all inside Microsoft SEAL.

No randomness is drawn here. Symmetric encryptions and evaluation keys come out of SEAL with their uniform halves as
seeds, and leave this module as ring data; the secret itself leaves it only for its own 0600 file. Servers never import
this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ..errors import CiphertextMismatch, InputError, KeyMismatch, Reason
from ..gadget import SEAL, Gadget
from ..params import CkksParams
from ..ring import RELINEARIZATION, CiphertextData, KeyRecord, KeyRequest, KeySetSpec, Poly, PublicKeyData
from . import seal_bridge, seal_format, secret_file
from .hybrid_keys import make_key, secret_residues
from .zeros import SymmetricZeros

__all__ = ["SecretKey"]


class SecretKey:
    """A secret key for one parameter set; make it with `generate` or `load`. It cannot be pickled or copied."""

    def __init__(self, params: CkksParams, context: Any, secret: Any) -> None:
        seal = seal_bridge.sealapi()
        self._params = params
        self._context = context
        self._secret = secret
        self._encoder = seal.CKKSEncoder(context)
        self._encryptor = seal.Encryptor(context, secret)
        self._decryptor = seal.Decryptor(context, secret)
        self._zeros = SymmetricZeros(params, context, secret)
        self._parms_ids = [seal_bridge.parms_id(context, level) for level in range(params.max_level + 1)]

    @property
    def params(self) -> CkksParams:
        return self._params

    def __repr__(self) -> str:
        return f"SecretKey({self._params.name}, <redacted>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle or copy a secret key; try save and load")

    @classmethod
    def generate(cls, params: CkksParams) -> SecretKey:
        """A fresh ternary key from SEAL's generator."""
        context = seal_bridge.make_key_context(params)
        return cls(params, context, seal_bridge.sealapi().KeyGenerator(context).secret_key())

    def save(self, path: str | Path) -> None:
        """Write the key to `path` with mode 0600, atomically: an interrupted save leaves the old file."""
        data = seal_bridge.save_object(self._secret, secret=True)
        try:
            secret_file.write(Path(path), self._params, data)
        finally:
            data[:] = bytes(len(data))

    @classmethod
    def load(cls, path: str | Path, params: CkksParams) -> SecretKey:
        """Read a key made by `save`.

        Raises KeyMismatch when there is none or it was made for other parameters, WireError when the file is damaged or
        others may read it.
        """
        data = secret_file.read(Path(path), params)
        try:
            context = seal_bridge.make_key_context(params)
            empty = seal_bridge.sealapi().SecretKey()
            secret = seal_bridge.load_object(empty, context, [memoryview(data)], secret=True)
        finally:
            data[:] = bytes(len(data))
        return cls(params, context, secret)

    def make_keys(self, spec: KeySetSpec) -> Iterator[KeyRecord]:
        """Evaluation keys in the order of `spec`, seeded and cut to their levels, one at a time.

        Memory: one whole key. Raises KeyMismatch for an element or level that the parameters do not have, ParameterError
        for an unknown gadget or one that they do not have the special primes for.
        """
        gadget = Gadget.parse(spec.gadget)
        gadget.check(self._params)
        for request in spec.requests:
            _check_request(request, self._params)
        if gadget.name == SEAL:
            generator = seal_bridge.sealapi().KeyGenerator(self._context, self._secret)
            yield from (self._make_key(generator, request) for request in spec.requests)
            return
        for request in spec.requests:
            with secret_residues(self._params, self._secret) as residues:
                record = make_key(self._params, gadget, request, residues, self._zeros)
            yield record

    def _make_key(self, generator: Any, request: KeyRequest) -> KeyRecord:
        if request.element == RELINEARIZATION:
            keys, index = generator.create_relin_keys(), 0
        else:
            keys, index = generator.create_galois_keys([request.element]), (request.element - 1) // 2
        parsed = seal_format.read_key_switch(seal_format.body(seal_bridge.save_object(keys)))
        live = request.level + 1
        rows = [*range(live), len(self._params.primes)]
        digits = tuple(_cut_digit(d, rows) for d in parsed[index][:live])
        return KeyRecord(request.element, request.level, digits)

    def public_key(self) -> PublicKeyData:
        """A fresh encryption key: an encryption of zero at the key level, its uniform half as a seed."""
        return PublicKeyData(self._zeros.draw().consume())

    def encrypt(self, slots: npt.NDArray[np.float64], level: int, scale: float) -> CiphertextData:
        """Symmetric encryption of float64 (slots,) at `level` and exactly `scale`; c1 is a seed.

        Raises InputError for a wrong shape, a non-finite value, or values that at this scale exceed the modulus.
        """
        values = np.asarray(slots, dtype=np.float64)
        _check_input(values, level, scale, self._params)
        plain = seal_bridge.sealapi().Plaintext()
        self._encoder.encode(values.tolist(), self._parms_ids[level], scale, plain)
        encrypted = self._encryptor.encrypt_symmetric(plain)
        return seal_bridge.download_ciphertext(self._context, self._params, encrypted)

    def decrypt(self, ct: CiphertextData) -> npt.NDArray[np.float64]:
        """Slots (slots,) of `ct`, for the owner of the key only: their noise tells of the key, so never publish them.

        Raises CiphertextMismatch when level, scale or size do not fit the parameters.
        """
        if not math.isfinite(ct.scale) or ct.scale < 1 or not 0 <= ct.level <= self._params.max_level:
            raise CiphertextMismatch("cannot decrypt: the level or the scale is out of range for these parameters")
        if math.log2(ct.scale) >= self._params.log2_q(ct.level):
            raise CiphertextMismatch(
                f"cannot decrypt: got a scale of 2^{math.log2(ct.scale):.1f}, need one below the modulus of level "
                f"{ct.level}, 2^{self._params.log2_q(ct.level):.1f}",
                Reason.SCALE_MISMATCH,
            )
        plain = seal_bridge.sealapi().Plaintext()
        self._decryptor.decrypt(seal_bridge.upload_ciphertext(self._context, self._params, ct), plain)
        return np.array(self._encoder.decode_double(plain), dtype=np.float64)


def _cut_digit(digit: seal_format.SealCiphertext, rows: list[int]) -> tuple[npt.NDArray[np.uint64], Poly]:
    b, a = digit.polys
    assert isinstance(b, np.ndarray)
    return b[rows], a[rows] if isinstance(a, np.ndarray) else a


def _check_request(request: KeyRequest, params: CkksParams) -> None:
    element = request.element
    known = element == RELINEARIZATION or (element % 2 == 1 and 1 < element < 2 * params.degree)
    if not known or not 0 <= request.level <= params.max_level:
        raise KeyMismatch(
            f"cannot make a key for element {element} at level {request.level}: need 0 or an odd element below "
            f"{2 * params.degree}, and a level of at most {params.max_level}",
            Reason.KEY_PARAMETERS_DIFFER,
        )


def _check_input(values: npt.NDArray[np.float64], level: int, scale: float, params: CkksParams) -> None:
    if values.shape != (params.slots,):
        raise InputError(f"cannot encrypt: got slots of shape {values.shape}, need ({params.slots},); try zero padding")
    if not np.isfinite(values).all():
        raise InputError("cannot encrypt: got NaN or infinite values, need finite ones", Reason.INPUT_NOT_FINITE)
    if not 0 <= level <= params.max_level or not math.isfinite(scale) or scale < 1:
        raise InputError(
            f"cannot encrypt at level {level}: need at most level {params.max_level}, and a finite scale of at least 1"
        )
    # Coefficients are at most max|slots| * scale; a factor of four below the modulus leaves room for sign and noise.
    room_bits = params.log2_q(level) - 2
    if math.log2(scale) + math.log2(max(1.0, float(np.abs(values).max()))) > room_bits:
        raise InputError(
            f"cannot encrypt at level {level}: the largest value times the scale exceeds 2^{room_bits:.1f}; "
            "try a smaller scale, or inputs in the calibrated range",
            Reason.INPUT_OUT_OF_RANGE,
        )
