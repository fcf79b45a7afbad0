"""The file layout of Microsoft SEAL 4.x objects, built and parsed as plain bytes.

Residues enter and leave SEAL's Python bindings only through files. This module writes such files uncompressed from
arrays that were already checked, and reads files that the local SEAL library itself has just saved. It is not a
parser for bytes from outside: those are refused or accepted by `he_runtime.wire`, and never reach SEAL.

Every object is a 16-byte header (magic, header size, version, compression, total size) followed by its members; the
`minor` version is a parameter because releases of SEAL refuse each other's headers (TenSEAL 0.3.18 holds SEAL 4.3,
Pyfhel 3.5.0 holds SEAL 4.1).
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import BackendUnavailable, Reason, WireError
from ..ring import Poly, Residues, SeededPoly

__all__ = [
    "SEED_BYTES",
    "ParmsId",
    "Parts",
    "SealCiphertext",
    "body",
    "ciphertext",
    "ciphertext_bytes",
    "key_switch",
    "minor_version",
    "object_file",
    "plaintext_bytes",
    "private_body",
    "read_ciphertext",
    "read_key_switch",
]

MAGIC = 0xA15E
MAJOR = 4
SEED_BYTES = 64
_HEADER = struct.Struct("<HBBBBHQ")  # magic, header size, major, minor, compression, reserved, size with header
_CIPHERTEXT = struct.Struct("<4QBQQQdQ")  # parms id, NTT form, polynomials, N, limbs, scale, correction factor
_PLAINTEXT = struct.Struct("<4QQd")  # parms id, coefficients, scale
_COUNT = struct.Struct("<Q")
_KEYS = struct.Struct("<4QQ")  # parms id, number of key vectors
_NONE, _ZLIB, _ZSTD = range(3)
_GENERATORS: dict[str, int] = {"blake2xb": 1, "shake256": 2}
_GENERATOR_NAMES: dict[int, Literal["blake2xb", "shake256"]] = {1: "blake2xb", 2: "shake256"}

ParmsId: TypeAlias = tuple[int, int, int, int]
# Pieces of a file in order: bytes-like pieces, and integers for runs of zero bytes that a sparse file leaves as holes.
Parts: TypeAlias = list[bytes | memoryview | int]


@dataclass(frozen=True)
class SealCiphertext:
    """A ciphertext (or one digit of a key) as SEAL stores it; residues (stored polynomials, limbs, N)."""

    parms_id: ParmsId
    ntt: bool
    size: int
    scale: float
    residues: npt.NDArray[np.uint64] = field(repr=False)
    seed: SeededPoly | None = None

    @property
    def polys(self) -> tuple[Poly, ...]:
        stored: tuple[Poly, ...] = tuple(self.residues)
        return stored if self.seed is None else (*stored, self.seed)


def _size(parts: Parts) -> int:
    return sum(p if isinstance(p, int) else memoryview(p).nbytes for p in parts)


def _object(members: Parts, minor: int) -> Parts:
    return [_HEADER.pack(MAGIC, _HEADER.size, MAJOR, minor, _NONE, 0, _HEADER.size + _size(members)), *members]


def object_file(members: Parts, minor: int) -> Parts:
    """A whole file: the header of an uncompressed object, then its members."""
    return _object(members, minor)


def _rows(poly: Residues, limbs: int) -> Parts:
    """The rows of one polynomial; rows that a level-cut key lacks become zeros before its last (special) row."""
    rows = np.ascontiguousarray(poly, dtype="<u8")
    missing = limbs - len(rows)
    if missing == 0:
        return [rows.data.cast("B")]
    return [rows[:-1].data.cast("B"), missing * rows.shape[1] * 8, rows[-1:].data.cast("B")]


def ciphertext(parms_id: ParmsId, scale: float, polys: Sequence[Poly], degree: int, limbs: int, minor: int) -> Parts:
    """Members of a Ciphertext whose polynomials have `limbs` rows in SEAL; only the last may be a seed.

    Polynomials with fewer rows are level-cut key polynomials and are padded with zero rows before the last.
    """
    full: Parts = []
    for poly in polys:
        if not isinstance(poly, SeededPoly):
            full += _rows(poly, limbs)
    count = _size(full) // 8
    parts: Parts = [
        _CIPHERTEXT.pack(*parms_id, 1, len(polys), degree, limbs, scale, 1),
        *_object([_COUNT.pack(count), *full], minor),
    ]
    last = polys[-1]
    if isinstance(last, SeededPoly):
        parts += _object([bytes([_GENERATORS[last.generator]]) + last.seed], minor)
    return parts


def _zero_digit(parms_id: ParmsId, degree: int, limbs: int, minor: int) -> Parts:
    words = 2 * limbs * degree
    return [_CIPHERTEXT.pack(*parms_id, 1, 2, degree, limbs, 1.0, 1), *_object([_COUNT.pack(words), words * 8], minor)]


def key_switch(
    parms_id: ParmsId,
    keys: dict[int, Sequence[tuple[Residues, Poly]]],
    slots: int,
    degree: int,
    limbs: int,
    minor: int,
) -> Parts:
    """Members of KSwitchKeys with `slots` vectors; `keys` maps a vector's index to its digits (b_i, a_i).

    SEAL insists on limbs - 1 digits; those that a level-cut key lacks are zero.
    """
    parts: Parts = [_KEYS.pack(*parms_id, slots)]
    position = 0
    for index in sorted(keys):
        parts.append((index - position) * _COUNT.size)
        parts.append(_COUNT.pack(limbs - 1))
        for digit in keys[index]:
            parts += _object(ciphertext(parms_id, 1.0, digit, degree, limbs, minor), minor)
        for _ in range(limbs - 1 - len(keys[index])):
            parts += _object(_zero_digit(parms_id, degree, limbs, minor), minor)
        position = index + 1
    parts.append((slots - position) * _COUNT.size)
    return parts


def _malformed(what: str) -> WireError:
    return WireError(f"cannot read a SEAL object: {what}; try the tenseal version of the constraints file")


def _header(data: memoryview, offset: int) -> tuple[int, int]:
    """(compression, end of the object)."""
    if len(data) - offset < _HEADER.size:
        raise WireError("cannot read a SEAL object: it ends inside a header", Reason.BYTES_TRUNCATED)
    magic, header_size, major, _, compression, _, size = _HEADER.unpack_from(data, offset)
    if magic != MAGIC or header_size != _HEADER.size or major != MAJOR:
        raise _malformed(f"got magic {magic:#x}, version {major}, need {MAGIC:#x}, version {MAJOR}")
    if not _HEADER.size <= size <= len(data) - offset:
        raise WireError("cannot read a SEAL object: it is shorter than its header says", Reason.BYTES_TRUNCATED)
    return compression, offset + size


def minor_version(data: bytes | bytearray) -> int:
    """The minor version of the SEAL 4 that saved an object."""
    _header(memoryview(data), 0)
    minor: int = _HEADER.unpack_from(data)[3]
    return minor


def body(data: bytes | bytearray) -> memoryview:
    """Members of a saved object, decompressed."""
    view = memoryview(data)
    compression, end = _header(view, 0)
    payload = view[_HEADER.size : end]
    if compression == _NONE:
        return payload
    if compression == _ZLIB:
        return memoryview(zlib.decompress(payload))
    if compression != _ZSTD:
        raise _malformed(f"compression {compression} is unknown")
    return memoryview(_zstandard().ZstdDecompressor().decompressobj().decompress(payload))


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise BackendUnavailable("cannot read SEAL files: zstandard is missing; try pip install zstandard") from error
    return zstandard


def ciphertext_bytes(polys: int, limbs: int, degree: int, seeded: bool) -> int:
    """Size of a Ciphertext's members when its last polynomial is a seed, or none is."""
    words = (polys - seeded) * limbs * degree
    seed = _HEADER.size + 1 + SEED_BYTES if seeded else 0
    return _CIPHERTEXT.size + _HEADER.size + _COUNT.size + 8 * words + seed


def plaintext_bytes(words: int) -> int:
    """Size of the members of a Plaintext, or of a SecretKey, which come before its residues and with them."""
    return _PLAINTEXT.size + _HEADER.size + _COUNT.size + 8 * words


def private_body(data: bytearray, size: int) -> bytearray:
    """Members of a saved object, which must be `size` bytes, in a buffer that the caller can overwrite; no copy is made."""
    view = memoryview(data)
    compression, end = _header(view, 0)
    members = bytearray(size)
    with _stream(compression, view[_HEADER.size : end]) as stream:
        filled = 0
        while filled < size and (count := stream.readinto(memoryview(members)[filled:])):
            filled += count
        if filled != size or stream.read(1):
            members[:] = bytes(size)
            raise _malformed(f"it is not of {size} bytes")
    return members


def _stream(compression: int, payload: memoryview) -> Any:
    if compression == _NONE:
        return io.BytesIO(payload)
    if compression != _ZSTD:
        raise _malformed(f"compression {compression} is not what SEAL saves secrets with")
    return _zstandard().ZstdDecompressor().stream_reader(payload)


def read_ciphertext(members: memoryview, offset: int = 0) -> tuple[SealCiphertext, int]:
    """Read Ciphertext members at `offset`: the ciphertext (its residues a view of `members`) and the end offset."""
    try:
        *parms_id, ntt, size, degree, limbs, scale, _ = _CIPHERTEXT.unpack_from(members, offset)
    except struct.error as error:
        raise WireError("cannot read a SEAL ciphertext: it is truncated", Reason.BYTES_TRUNCATED) from error
    compression, end = _header(members, offset + _CIPHERTEXT.size)
    start = offset + _CIPHERTEXT.size + _HEADER.size
    (count,) = _COUNT.unpack_from(members, start)
    if compression != _NONE or end != start + _COUNT.size + 8 * count:
        raise _malformed("the residue array is not as long as it says")
    stored = size if count == size * limbs * degree else size - 1
    if size < 2 or count != stored * limbs * degree:
        raise _malformed(f"{count} residues do not make {size} polynomials of {limbs} x {degree}")
    residues = np.frombuffer(members, "<u8", count, start + _COUNT.size).reshape(stored, limbs, degree)
    seed = None
    if stored < size:
        _, seed_end = _header(members, end)
        raw = bytes(members[end + _HEADER.size : seed_end])
        if len(raw) != 1 + SEED_BYTES or raw[0] not in _GENERATOR_NAMES:
            raise _malformed("the seed is of an unknown kind or length")
        seed, end = SeededPoly(_GENERATOR_NAMES[raw[0]], raw[1:], limbs), seed_end
    a, b, c, d = parms_id
    return SealCiphertext((a, b, c, d), bool(ntt), size, scale, residues, seed), end


def read_key_switch(members: memoryview) -> dict[int, list[SealCiphertext]]:
    """Read KSwitchKeys members: index of the key vector -> its digits. Raises WireError unless it ends exactly."""
    *_, slots = _KEYS.unpack_from(members, 0)
    offset = _KEYS.size
    keys: dict[int, list[SealCiphertext]] = {}
    for index in range(slots):
        (digits,) = _COUNT.unpack_from(members, offset)
        offset += _COUNT.size
        for _ in range(digits):
            _, end = _header(members, offset)
            digit, offset = read_ciphertext(members, offset + _HEADER.size)
            if offset != end:
                raise _malformed("a key digit has bytes left over")
            keys.setdefault(index, []).append(digit)
    if offset != len(members):
        raise _malformed("bytes are left over after the last key")
    return keys
