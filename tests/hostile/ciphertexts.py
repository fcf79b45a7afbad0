"""Ciphertexts that are not what they claim to be: cut, edited and sealed again, transparent, of others, or no ciphertexts.

An object has a header of 80 bytes, then count and N, then for each ciphertext its level, number of polynomials and scale,
and each polynomial after its form and number of rows: docs/wire.md.
"""

from __future__ import annotations

import gzip
import io
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np

from he_runtime.ring import CiphertextData
from he_runtime.wire import HEADER_BYTES, encode_ciphertexts, encode_public_key
from tests.hostile.carriers import CARRIERS
from tests.hostile.case import ACCEPTED, HUGE, U32, U64, Answer, Case, Group, nth, refusal
from tests.hostile.sides import Side
from tests.hostile.world import World
from tests.wire.arrays import resealed

__all__ = ["CIPHERTEXTS", "Edit", "header_edits", "packed"]

_ROWS = HEADER_BYTES + 32  # the first residues
Edit = tuple[str, int, str, int | float, str]  # field, offset, layout, value, the reason that it is refused with


def packed(data: bytes, offset: int, layout: str, value: float) -> bytes:
    """`data` with one field replaced, and not sealed again."""
    edited = bytearray(data)
    struct.pack_into(layout, edited, offset, value)
    return bytes(edited)


def _sealed(data: bytes, offset: int, layout: str, value: float) -> bytes:
    return resealed(data, lambda d: struct.pack_into(layout, d, offset, value))


def _sent(name: str, reason: str, data: bytes, rng: random.Random, model: str = "tiny") -> Case:
    """The case of sending `data`, by a carrier of the generator's choice; no reason where it is to be accepted."""
    carrier = rng.choice(sorted(CARRIERS))
    expected: Answer = refusal(reason) if reason else ACCEPTED
    return Case.of(f"{name}, by {carrier}", expected, lambda world: CARRIERS[carrier](world, data, model))


def _second(side: Side) -> int:
    """Where the second polynomial begins."""
    return _ROWS + 8 * (side.spec.input.level + 1) * side.spec.params.degree


def _boundaries(side: Side) -> list[int]:
    second = _second(side)
    fields = [4, 6, 8, 16, 48, 80, 84, 88, 92, 96, 104, 108, _ROWS, second, second + 4, second + 8]
    return sorted(
        {at + near for at in (*fields, len(side.request)) for near in (-1, 0, 1)} & {*range(len(side.request))}
    )


def _cut(rng: random.Random, n: int, world: World) -> Case:
    side = world.sides["tiny"]
    cuts = _boundaries(side)
    at = cuts[n] if n < len(cuts) else rng.randrange(len(side.request))
    return _sent(f"cut to {at} bytes", "BYTES_TRUNCATED", side.request[:at], rng)


def _cut_and_sealed(rng: random.Random, n: int, world: World) -> Case:
    side = world.sides["tiny"]
    cuts = [at for at in _boundaries(side) if at >= HEADER_BYTES]
    at = cuts[n] if n < len(cuts) else rng.randrange(HEADER_BYTES, len(side.request))
    data = _sealed(side.request[:at], 8, "<Q", at - HEADER_BYTES)
    return _sent(f"cut to {at} bytes and sealed", "BYTES_TRUNCATED", data, rng)


def header_edits(body: int, kinds: tuple[int, ...]) -> list[Edit]:
    """Every field of the header, for an object of one kind with a body of `body` bytes."""
    lengths = [v for v in (*U64, body - 1, body + 1) if v != body]
    return [
        *(("magic", 0, "<I", v, "BYTES_MALFORMED") for v in U32),
        *(("version", 4, "<H", v, "VERSION_UNKNOWN") for v in (0, 2, 255, 65535)),
        *(("kind", 6, "<H", v, "BYTES_MALFORMED") for v in (0, *kinds, 5, 255, 65535)),
        *(("length", 8, "<Q", v, "BYTES_TRUNCATED" if v > body else "BYTES_MALFORMED") for v in lengths),
    ]


def _header(rng: random.Random, n: int, world: World) -> Case:
    data = world.sides["tiny"].request
    field, offset, layout, value, reason = nth(header_edits(len(data) - HEADER_BYTES, (2, 3, 4)), n)
    return _sent(f"{field} of {value}", reason, _sealed(data, offset, layout, value), rng)


def _fields(side: Side) -> list[Edit]:
    """Every count, length and form of the body, at values that are wrong there."""
    second, degree = _second(side), side.spec.params.degree
    return [
        ("count", 80, "<I", 0, "BYTES_MALFORMED"),
        *(("count", 80, "<I", v, "LIMIT_EXCEEDED") for v in (2, 10_000, *U32[1:])),
        *(("N", 84, "<I", v, "SIZE_MISMATCH") for v in (*U32, 1, degree // 2, 2 * degree, 131_072)),
        *(("level", 88, "<I", v, "LEVEL_MISMATCH") for v in (side.spec.params.max_level + 1, 63, *U32[1:])),
        *(("polynomials", 92, "<I", v, "SIZE_MISMATCH") for v in (*U32, 1, 4, 16)),
        ("polynomials", 92, "<I", 3, "BYTES_MALFORMED"),  # the seed would be the second of three
        *(("form", 104, "<I", v, "BYTES_MALFORMED") for v in (1, 2, 3, *U32[1:])),
        *(("rows", 108, "<I", v, "SIZE_MISMATCH") for v in (*U32, 1, 3)),
        ("form of the second", second, "<I", 0, "BYTES_TRUNCATED"),
        *(("form of the second", second, "<I", v, "BYTES_MALFORMED") for v in (3, *U32[1:])),
        *(("rows of the seed", second + 4, "<I", v, "SIZE_MISMATCH") for v in (*U32, 1, 3)),
    ]


def _field(rng: random.Random, n: int, world: World) -> Case:
    side = world.sides["tiny"]
    field, offset, layout, value, reason = nth(_fields(side), n)
    return _sent(f"{field} of {value}", reason, _sealed(side.request, offset, layout, value), rng)


_SCALES = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, -1.0, 5e-324, 2.0**-1022, 0.5, 1.0, 2.0**45, 1e300)


def _scale(rng: random.Random, n: int, world: World) -> Case:
    side = world.sides["tiny"]
    right = side.spec.input.scale
    known = (*_SCALES, -right, right * 2, right / 2, right * (1 + 1e-6))
    if n < len(known):
        data = _sealed(side.request, 96, "<d", known[n])
        return _sent(f"a scale of {known[n]!r}", "SCALE_MISMATCH", data, rng)
    bits = rng.choice((*U64, rng.getrandbits(64)))
    return _sent(f"scale bits {bits:#x}", "SCALE_MISMATCH", _sealed(side.request, 96, "<Q", bits), rng)


def _residue(rng: random.Random, n: int, world: World) -> Case:
    side = world.sides["tiny"]
    params, polynomial, row = side.spec.params, n % 2, n // 2 % 2
    start = _ROWS if polynomial == 0 else _second(side) + 8
    column = nth((0, params.degree - 1, rng.randrange(params.degree)), n // 4)
    value = rng.choice((params.primes[row], params.primes[row] + 1, *HUGE[2:]))
    data = _sealed(side.request_in_full, start + 8 * (row * params.degree + column), "<Q", value)
    return _sent(f"residue {value} in row {row} of polynomial {polynomial}", "RESIDUE_OUT_OF_RANGE", data, rng)


def _transparent(rng: random.Random, n: int, world: World) -> Case:
    side = world.sides["tiny"]
    start = _second(side) + 8
    data = resealed(side.request_in_full, lambda d: d.__setitem__(slice(start, len(d)), bytes(len(d) - start)))
    if n % 2:
        data = resealed(data, lambda d: d.__setitem__(slice(_ROWS, start - 8), bytes(start - 8 - _ROWS)))
    return _sent("a transparent ciphertext" + (" of zero" if n % 2 else ""), "BYTES_MALFORMED", data, rng)


def _flipped(rng: random.Random, n: int, world: World) -> Case:
    data = bytearray(world.sides["tiny"].request)
    at, bit = rng.randrange(16, len(data)), rng.randrange(8)
    data[at] ^= 1 << bit
    return _sent(f"bit {bit} of byte {at} flipped", "DIGEST_MISMATCH", bytes(data), rng)


def _longer(rng: random.Random, n: int, world: World) -> Case:
    data = world.sides["tiny"].request + rng.randbytes(nth((1, 7, 8, 4096), n))
    if n % 2:
        data = _sealed(data, 8, "<Q", len(data) - HEADER_BYTES)
    return _sent("bytes left over" + (", sealed" if n % 2 else ""), "BYTES_MALFORMED", data, rng)


def _level_and_size(rng: random.Random, n: int, world: World) -> Case:
    """Whole and well made, and not what the plan takes."""
    side = world.sides["tiny"]
    params = side.spec.params
    (low,) = side.encrypted(0, 2.0**20)
    (good,) = map(side.expanded, side.encrypted())
    full = side.expanded(low)
    made: list[tuple[str, str, list[CiphertextData]]] = [
        ("a level too low", "LEVEL_MISMATCH", [low]),
        ("a level too low, three polynomials", "LEVEL_MISMATCH", [replace(full, polys=(*full.polys, full.polys[1]))]),
        ("three polynomials", "LIMIT_EXCEEDED", [replace(good, polys=(*good.polys, good.polys[1]))]),
        ("two ciphertexts", "LIMIT_EXCEEDED", side.encrypted() * 2),
        ("two ciphertexts of a low level", "LIMIT_EXCEEDED", [low, low]),
        ("no ciphertext", "SIZE_MISMATCH", []),
    ]
    name, reason, cts = nth(made, n)
    return _sent(name, reason, encode_ciphertexts(cts, params), rng)


def _foreign(rng: random.Random, n: int, world: World) -> Case:
    """Of other parameters, of another kind, or of another format altogether."""
    tiny, other = world.sides["tiny"], world.sides["other"]
    digest = rng.randbytes(32)
    made: list[tuple[str, str, Callable[[], bytes]]] = [
        ("another model's ciphertexts", "PARAMETERS_INVALID", lambda: other.request),
        ("an unknown digest", "PARAMETERS_INVALID", lambda: resealed(tiny.request, lambda d: _put(d, 16, digest))),
        ("a public key", "BYTES_MALFORMED", lambda: encode_public_key(other.secret.public_key(), other.spec.params)),
        ("a key set", "LIMIT_EXCEEDED", lambda: tiny.key_file),
        ("another model's key set", "LIMIT_EXCEEDED", lambda: other.key_file + bytes(len(tiny.request))),
        ("a gzip bomb", "BYTES_MALFORMED", lambda: _bombs()[0]),
        ("a zlib bomb", "BYTES_MALFORMED", lambda: _bombs()[1]),
        ("a frame of Zstandard that claims 2^63 bytes", "BYTES_MALFORMED", lambda: _zstandard(rng)),
        ("a serialized object of SEAL", "BYTES_MALFORMED", lambda: _seal_like(rng)),
        ("an archive of NumPy", "BYTES_MALFORMED", _archive),
        ("a pickle", "BYTES_MALFORMED", lambda: b"\x80\x04cposix\nsystem\n(S'true'\ntR." + bytes(80)),
        ("random bytes", "BYTES_MALFORMED", lambda: b"\0" + rng.randbytes(rng.randrange(80, 4096))),
    ]
    name, reason, make = nth(made, n)
    return _sent(name, reason, make(), rng)


@cache
def _bombs() -> tuple[bytes, bytes]:
    """32 MB in 32 KB, twice."""
    zeros = bytes(32 << 20)
    return gzip.compress(zeros), zlib.compress(zeros)


def _put(data: bytearray, at: int, value: bytes) -> None:
    data[at : at + len(value)] = value


def _zstandard(rng: random.Random) -> bytes:
    return struct.pack("<IBQ", 0xFD2FB528, 0xE0, 1 << 63) + rng.randbytes(200)


def _seal_like(rng: random.Random) -> bytes:
    """SEAL's header (magic, header size, version 4.1, Zstandard) before a claim of 2^63 bytes."""
    return struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 1, 2, 0, 1 << 63) + rng.randbytes(200)


def _archive() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros(1 << 20))
    return file.getvalue()


def _noise(rng: random.Random, n: int, world: World) -> Case:
    """Residues from nowhere, in good form: nobody can tell them from an encryption, so they are evaluated."""
    side = world.sides["tiny"]
    params, level = side.spec.params, side.spec.input.level
    source = np.random.default_rng(rng.getrandbits(64))
    polys = tuple(
        np.stack([source.integers(0, q, params.degree, dtype=np.uint64) for q in params.primes[: level + 1]])
        for _ in range(2)
    )
    data = encode_ciphertexts([CiphertextData(level, side.spec.input.scale, polys)], params)
    return _sent("random residues", "", data, rng)


def _empty(rng: random.Random, n: int, world: World) -> Case:
    return _sent("no bytes", "BYTES_TRUNCATED", b"", rng, nth(("tiny", "other", "narrow"), n))


CIPHERTEXTS: dict[str, Group] = {
    "ciphertexts cut": _cut,
    "ciphertexts cut and sealed": _cut_and_sealed,
    "ciphertexts: header": _header,
    "ciphertexts: counts, lengths, forms": _field,
    "ciphertexts: scale": _scale,
    "ciphertexts: residues": _residue,
    "ciphertexts: transparent": _transparent,
    "ciphertexts: a bit flipped": _flipped,
    "ciphertexts: bytes left over": _longer,
    "ciphertexts: level, size, number": _level_and_size,
    "ciphertexts: other objects, bombs": _foreign,
    "ciphertexts: random residues": _noise,
    "ciphertexts: none": _empty,
}
