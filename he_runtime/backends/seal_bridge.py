"""Ring data <-> objects of tenseal.sealapi, through files in memory.

The bindings take residues only from files, so an upload writes an uncompressed SEAL file into anonymous memory and has
SEAL load it; a download has SEAL save and inflates. Everything written here was validated by `he_runtime.wire` or made
by the local library.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from ..errors import BackendUnavailable, CiphertextMismatch, KeyMismatch, ParameterError, Reason
from ..params import CkksParams
from ..ring import RELINEARIZATION, CiphertextData, KeyRecord, Poly, SeededPoly
from . import seal_format
from .seal_format import ParmsId, Parts

__all__ = [
    "download_ciphertext",
    "load_object",
    "make_context",
    "make_key_context",
    "parms_id",
    "save_object",
    "sealapi",
    "upload_ciphertext",
    "upload_keys",
]

_MEMFD = sys.platform == "linux" and hasattr(os, "memfd_create")


def sealapi() -> Any:
    """The module tenseal.sealapi; BackendUnavailable with the pip command when it is missing."""
    try:
        return importlib.import_module("tenseal.sealapi")
    except ImportError as error:
        raise BackendUnavailable(
            "cannot use the tenseal backend: tenseal is not installed; try pip install tenseal==0.3.18 zstandard"
        ) from error


@cache
def seal_minor() -> int:
    """The minor version of the SEAL 4 inside the installed tenseal, from a header that it writes."""
    seal = sealapi()
    return seal_format.minor_version(save_object(seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)))


def make_context(params: CkksParams) -> Any:
    """A SEALContext for evaluation on exactly these primes, chain expanded; the last prime is the special one.

    SEAL's own security check is off (SEC_LEVEL_TYPE.NONE): the gate is CkksParams, whose table is stricter and also
    knows N=65536, which SEAL would refuse. Raises ParameterError for more than one special prime (the SEAL gadget
    has one), or for whatever SEAL itself rejects.
    """
    if len(params.special) != 1:
        raise ParameterError(
            f"cannot use {len(params.special)} special primes with SEAL: its key switching has exactly 1; "
            "try a plan on the 'seal' gadget"
        )
    return make_key_context(params)


def make_key_context(params: CkksParams) -> Any:
    """The context that keys, encryption and decryption need: `make_context` for any number of special primes.

    They are the last ones of SEAL's chain, so level l is still the context with l + 1 live primes; those with some
    special primes live have no level. SEAL must not switch keys here when there are several.
    """
    seal = sealapi()
    parms = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parms.set_poly_modulus_degree(params.degree)
    parms.set_coeff_modulus([seal.Modulus(q) for q in (*params.primes, *params.special)])
    context = seal.SEALContext(parms, True, seal.SEC_LEVEL_TYPE.NONE)
    if not context.parameters_set():
        raise ParameterError(f"cannot use {params.name} with SEAL: {context.parameters_error_message()}")
    return context


def parms_id(context: Any, level: int) -> ParmsId:
    """SEAL's identifier of the parameters with level + 1 live primes; ParameterError without such a level."""
    data = context.first_context_data()
    while data is not None and data.chain_index() != level:
        data = data.next_context_data()
    if data is None:
        top = context.first_context_data().chain_index()
        raise ParameterError(f"cannot find level {level}: this context has levels 0 to {top}")
    a, b, c, d = data.parms_id()
    return a, b, c, d


@contextmanager
def _memory_file() -> Iterator[tuple[int, str]]:
    """An empty private file as (descriptor, path): anonymous memory on Linux, else a 0600 temporary file."""
    if _MEMFD:
        fd = os.memfd_create("seal", os.MFD_CLOEXEC)
        try:
            yield fd, f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)
        return
    fd, path = tempfile.mkstemp(prefix="seal")
    try:
        yield fd, path
    finally:
        os.close(fd)
        os.unlink(path)


def _wipe(fd: int) -> None:
    size = os.fstat(fd).st_size
    os.pwrite(fd, bytes(size), 0)


def _write(fd: int, parts: Parts) -> None:
    """Write the parts; runs of zeros stay holes, so a level-cut key occupies only what it holds."""
    offset = 0
    for part in parts:
        if isinstance(part, int):
            offset += part
            continue
        view = memoryview(part)
        while view:
            written = os.pwrite(fd, view, offset)
            view, offset = view[written:], offset + written
    os.ftruncate(fd, offset)


def load_object(target: Any, context: Any, parts: Parts, *, secret: bool = False) -> Any:
    """Have the SEAL object `target` load a file made of `parts`; returns `target`. A secret file is overwritten."""
    with _memory_file() as (fd, path):
        _write(fd, parts)
        try:
            target.load(context, path)
        finally:
            if secret:
                _wipe(fd)
    return target


def save_object(source: Any, *, secret: bool = False) -> bytearray:
    """The bytes that SEAL saves for `source` (zstd-compressed, always). A secret file is overwritten."""
    with _memory_file() as (fd, path):
        source.save(path)
        data = bytearray(os.fstat(fd).st_size)
        view = memoryview(data)
        filled = 0
        while filled < len(data):
            filled += os.preadv(fd, [view[filled:]], filled)
        if secret:
            _wipe(fd)
    return data


def _check_ciphertext(params: CkksParams, data: CiphertextData) -> None:
    if not 0 <= data.level <= params.max_level or not 2 <= len(data.polys) <= 3:
        raise CiphertextMismatch(
            f"cannot use a ciphertext at level {data.level} with {len(data.polys)} polynomials: need level 0 to "
            f"{params.max_level} and 2 or 3 polynomials",
            Reason.LEVEL_MISMATCH if len(data.polys) in (2, 3) else Reason.SIZE_MISMATCH,
        )
    for index, poly in enumerate(data.polys):
        _check_poly(poly, data.level + 1, params.degree, seed_allowed=index == 1 == len(data.polys) - 1)


def _check_poly(poly: Poly, limbs: int, degree: int, *, seed_allowed: bool) -> None:
    if isinstance(poly, SeededPoly):
        valid = seed_allowed and poly.limbs == limbs and len(poly.seed) == seal_format.SEED_BYTES
    else:
        valid = poly.shape == (limbs, degree) and poly.dtype == np.uint64
    if not valid:
        raise CiphertextMismatch(
            f"cannot use a polynomial: need ({limbs}, {degree}) residues or their seed", Reason.SIZE_MISMATCH
        )


def upload_ciphertext(context: Any, params: CkksParams, data: CiphertextData) -> Any:
    """A sealapi.Ciphertext holding `data`; a seeded polynomial is expanded by SEAL itself.

    Raises CiphertextMismatch when the level or the shapes do not fit `params`.
    """
    _check_ciphertext(params, data)
    members = seal_format.ciphertext(
        parms_id(context, data.level), data.scale, data.polys, params.degree, data.level + 1, seal_minor()
    )
    return load_object(sealapi().Ciphertext(), context, seal_format.object_file(members, seal_minor()))


def download_ciphertext(context: Any, params: CkksParams, ct: Any) -> CiphertextData:
    """The residues, level and scale of a sealapi.Ciphertext, or of the seeded object that symmetric encryption returns.

    Raises CiphertextMismatch for a ciphertext of another context.
    """
    seal_ct, _ = seal_format.read_ciphertext(seal_format.body(save_object(ct)))
    level = seal_ct.residues.shape[1] - 1
    if not seal_ct.ntt or level > params.max_level or seal_ct.parms_id != parms_id(context, level):
        raise CiphertextMismatch(f"cannot download: the ciphertext was made in another context, not for {params.name}")
    return CiphertextData(level, seal_ct.scale, seal_ct.polys)


def _check_key(params: CkksParams, record: KeyRecord) -> None:
    live, limbs = record.level + 1, len(params.primes) + 1
    if record.element != RELINEARIZATION and not (record.element % 2 == 1 and 1 < record.element < 2 * params.degree):
        raise KeyMismatch(
            f"cannot use a key for element {record.element}: need 0, or an odd one between 1 and {2 * params.degree}",
            Reason.KEY_PARAMETERS_DIFFER,
        )
    if record.gadget != "seal" or not 0 <= record.level <= params.max_level or len(record.digits) != live:
        raise KeyMismatch(
            f"cannot use the key for element {record.element}: got {len(record.digits)} digits on gadget "
            f"{record.gadget!r} at level {record.level}, need {live} digits on 'seal'",
            Reason.KEY_PARAMETERS_DIFFER,
        )
    for b, a in record.digits:
        fits = b.shape == (live + 1, params.degree)
        fits &= a.limbs == limbs if isinstance(a, SeededPoly) else a.shape == b.shape
        if not fits:
            raise KeyMismatch(
                f"cannot use the key for element {record.element}: its polynomials do not fit {params.name}",
                Reason.KEY_PARAMETERS_DIFFER,
            )


def upload_keys(context: Any, params: CkksParams, records: Mapping[int, KeyRecord]) -> tuple[Any | None, Any | None]:
    """(GaloisKeys or None, RelinKeys or None) for records by element, each padded with zeros to the full chain.

    A key cut to level l switches exactly as the whole key does at level l and below, and must not be used above.
    Raises KeyMismatch when a record does not fit `params`.
    """
    for element, record in records.items():
        if element != record.element:
            raise KeyMismatch(f"cannot use the key filed under element {element}: it is for element {record.element}")
        _check_key(params, record)
    galois = {(e - 1) // 2: r.digits for e, r in records.items() if e != RELINEARIZATION}
    relin = {RELINEARIZATION: records[RELINEARIZATION].digits} if RELINEARIZATION in records else {}
    key_parms = tuple(context.key_parms_id())
    limbs = len(params.primes) + 1

    def load(target: Any, keys: Mapping[int, Any], slots: int) -> Any:
        members = seal_format.key_switch(key_parms, dict(keys), slots, params.degree, limbs, seal_minor())
        return load_object(target, context, seal_format.object_file(members, seal_minor()))

    seal = sealapi()
    return (
        load(seal.GaloisKeys(), galois, params.degree) if galois else None,
        load(seal.RelinKeys(), relin, 1) if relin else None,
    )
