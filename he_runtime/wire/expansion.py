"""From a 64-byte seed to a uniform polynomial, exactly as Microsoft SEAL 4 draws it.

The generator's output is a sequence of 4096-byte blocks. Block k is BLAKE2Xb (J.-P. Aumasson et al., "BLAKE2X", 2016)
of the 8-byte little-endian k, keyed with the seed; or SHAKE-256 of the seed followed by those 8 bytes. Residues are
64-bit little-endian words of that stream, limb by limb; a word at or above the largest multiple of q that the
sampler keeps is replaced by the next word after the whole polynomial's, and each is reduced modulo its prime.

The kernel hashes eight, four or two nodes at a time: three limbs at N=8192 take 0.18 to 0.5 ms
(docs/decisions/0039). NumPy does it where the kernel is not built, so a client or a backend without SEAL can, in some 4 ms.
"""

from __future__ import annotations

import hashlib
import importlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt

from ..errors import Reason, WireError
from ..kernel import status
from ..params import CkksParams
from ..ring import CiphertextData, Residues, SeededPoly

__all__ = ["expand_seed", "expanded"]

_BLOCK_BYTES = 4096
_DIGEST_BYTES = 64
_NODES = _BLOCK_BYTES // _DIGEST_BYTES
_Words = npt.NDArray[np.uint64]

_IV = np.array(
    [
        0x6A09E667F3BCC908,
        0xBB67AE8584CAA73B,
        0x3C6EF372FE94F82B,
        0xA54FF53A5F1D36F1,
        0x510E527FADE682D1,
        0x9B05688C2B3E6C1F,
        0x1F83D9ABFB41BD6B,
        0x5BE0CD19137E2179,
    ],
    dtype=np.uint64,
)
# RFC 7693, section 2.7: the message schedule; rounds 10 and 11 repeat rounds 0 and 1.
_SIGMA = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
    (14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3),
    (11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4),
    (7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8),
    (9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13),
    (2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9),
    (12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11),
    (13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10),
    (6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5),
    (10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0),
)


def _rotate(x: _Words, bits: int) -> _Words:
    return (x >> np.uint64(bits)) | (x << np.uint64(64 - bits))


def _mix(v: list[_Words], lanes: tuple[int, int, int, int], x: _Words, y: _Words) -> None:
    a, b, c, d = lanes
    v[a] = v[a] + v[b] + x
    v[d] = _rotate(v[d] ^ v[a], 32)
    v[c] = v[c] + v[d]
    v[b] = _rotate(v[b] ^ v[c], 24)
    v[a] = v[a] + v[b] + y
    v[d] = _rotate(v[d] ^ v[a], 16)
    v[c] = v[c] + v[d]
    v[b] = _rotate(v[b] ^ v[c], 63)


_COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def _compress(h: list[_Words], message: _Words) -> _Words:
    """BLAKE2b's compression of one last block of 64 bytes, for many messages (n, 8) at once -> (n, 8)."""
    zero = np.zeros(len(message), dtype=np.uint64)
    m = [*message.T, *[zero] * 8]
    v = [*h, *(zero + iv for iv in _IV)]
    v[12] = v[12] ^ np.uint64(_DIGEST_BYTES)
    v[14] = ~v[14]
    for round_number in range(12):
        s = _SIGMA[round_number % 10]
        for i, lanes in enumerate(_COLUMNS + _DIAGONALS):
            _mix(v, lanes, m[s[2 * i]], m[s[2 * i + 1]])
    return np.stack([h[i] ^ v[i] ^ v[i + 8] for i in range(8)], axis=1)


def _blake2xb(seed: bytes, first: int, count: int) -> _Words:
    """Blocks first..first+count-1, as words (count * 512,)."""
    roots = [
        hashlib.blake2b(struct.pack("<Q", k), key=seed, node_offset=_BLOCK_BYTES << 32).digest()
        for k in range(first, first + count)
    ]
    words = np.frombuffer(b"".join(roots), dtype="<u8").astype(np.uint64, copy=False)
    native = _native_nodes()
    if native is None:
        return _nodes(words.reshape(count, 8))
    out = np.empty(count * _NODES * 8, dtype=np.uint64)
    native(out, words)
    return out


@cache
def _native_nodes() -> Callable[[_Words, _Words], None] | None:
    """The kernel's routine, on the fastest path here; None where it is not built."""
    if not status().available:
        return None
    kernel = importlib.import_module("he_runtime.kernel._kernel")
    path = kernel.default_path()
    return lambda out, roots: kernel.blake2xb_nodes(out, roots, path)


def _nodes(roots: _Words) -> _Words:
    """Root digests (count, 8) -> the words of all their nodes (count * 512,)."""
    count = len(roots)
    message = np.repeat(roots, _NODES, axis=0)
    # The parameter block of an output node: digest 64, key 0, fanout 0, depth 0; leaf 64; offset i; total 4096; inner 64.
    node = np.tile(np.arange(_NODES, dtype=np.uint64), count)
    parameters = [
        np.uint64(_DIGEST_BYTES | _DIGEST_BYTES << 32),
        node | np.uint64(_BLOCK_BYTES << 32),
        np.uint64(_DIGEST_BYTES << 8),
        *[np.uint64(0)] * 5,
    ]
    h = [(node & np.uint64(0)) ^ iv ^ p for iv, p in zip(_IV, parameters, strict=True)]
    return _compress(h, message).ravel()


def _shake256(seed: bytes, first: int, count: int) -> _Words:
    blocks = [hashlib.shake_256(seed + struct.pack("<Q", k)).digest(_BLOCK_BYTES) for k in range(first, first + count)]
    return np.frombuffer(b"".join(blocks), dtype="<u8").astype(np.uint64, copy=False)


_STREAMS: dict[str, Callable[[bytes, int, int], _Words]] = {"blake2xb": _blake2xb, "shake256": _shake256}


def expand_seed(poly: SeededPoly, primes: Sequence[int], degree: int) -> Residues:
    """The residues (limbs, N) that the seed stands for; `primes` are the poly.limbs primes of its rows, in order.

    For a key cut to its level, pass the whole key chain (every prime, then the special ones) and keep rows 0..level and
    the special ones. Raises WireError when the number of primes is not the seed's.
    """
    if len(primes) != poly.limbs:
        raise WireError(f"cannot expand a seed: got {len(primes)} primes, need {poly.limbs}", Reason.SIZE_MISMATCH)
    stream = _STREAMS[poly.generator]
    words = poly.limbs * degree
    blocks = -(-words * 8 // _BLOCK_BYTES)
    drawn = stream(poly.seed, 0, blocks)
    rows = drawn[:words].reshape(poly.limbs, degree).copy()
    further = _further(drawn[words:], stream, poly.seed, blocks)
    for row, q in zip(rows, primes, strict=True):
        # SEAL keeps words below 2^64 - 1 - (2^64 - 1 mod q) - 1: the multiple of q, less one.
        limit = (1 << 64) - 1 - ((1 << 64) - 1) % q - 1
        for i in np.flatnonzero(row >= np.uint64(limit)):
            row[i] = next(w for w in further if w < limit)
        row %= np.uint64(q)
    return rows


def expanded(data: CiphertextData, params: CkksParams) -> CiphertextData:
    """A ciphertext with both polynomials in full."""
    primes = params.primes[: data.level + 1]
    polys = (expand_seed(p, primes, params.degree) if isinstance(p, SeededPoly) else p for p in data.polys)
    return replace(data, polys=tuple(polys))


def _further(left: _Words, stream: Callable[[bytes, int, int], _Words], seed: bytes, block: int) -> Iterator[int]:
    """The words of the stream after the polynomial's own."""
    yield from left.tolist()
    while True:
        yield from stream(seed, block, 1).tolist()
        block += 1
