"""Manifests of key set files: which pieces a file consists of, and where some of these lie when they are sent as one stream.

A manifest has 40 bytes for each piece, in the order of the file: the sha256 of the piece, and its size as a little-endian
u64. Nothing here is checked against limits; who reads somebody else's manifest does that.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

__all__ = ["PIECE_BYTES", "Piece", "Segments", "pack_manifest", "starts", "unpack_manifest"]

_PIECE = struct.Struct("<32sQ")
PIECE_BYTES = _PIECE.size


@dataclass(frozen=True)
class Piece:
    """Some bytes of a file, by their digest (hexadecimal sha256) and number."""

    sha256: str
    total_bytes: int


def pack_manifest(pieces: Iterable[Piece]) -> bytes:
    return b"".join(_PIECE.pack(bytes.fromhex(p.sha256), p.total_bytes) for p in pieces)


def unpack_manifest(data: bytes) -> tuple[Piece, ...]:
    """ValueError where a piece is not whole."""
    if len(data) % PIECE_BYTES:
        raise ValueError(f"a manifest of {len(data)} bytes does not consist of entries of {PIECE_BYTES}")
    return tuple(Piece(digest.hex(), count) for digest, count in _PIECE.iter_unpack(data))


def starts(pieces: Iterable[Piece]) -> list[int]:
    """Where each piece begins in the file, and last where the file ends."""
    return [0, *accumulate(p.total_bytes for p in pieces)]


class Segments:
    """Parts of a file, each a (start, count) after the one before, read or written one after the other as one stream."""

    def __init__(self, parts: Iterable[tuple[int, int]]) -> None:
        self._runs: list[tuple[int, int]] = []  # those that touch are one
        for start, count in parts:
            if self._runs and sum(self._runs[-1]) == start:
                self._runs[-1] = self._runs[-1][0], self._runs[-1][1] + count
            elif count:
                self._runs.append((start, count))
        self._begins = [0, *accumulate(count for _, count in self._runs)]  # of each run in the stream

    @property
    def total_bytes(self) -> int:
        return self._begins[-1]

    def places(self, offset: int, count: int) -> Iterator[tuple[int, int]]:
        """Where `count` bytes from an offset of the stream on lie in the file: (start, count) of each part of them.

        They are within the stream; ValueError.
        """
        if offset < 0 or count < 0 or offset + count > self.total_bytes:
            raise ValueError(f"bytes {offset} to {offset + count} are not within a stream of {self.total_bytes}")
        run = bisect_right(self._begins, offset) - 1
        while count:
            start, length = self._runs[run]
            within = offset - self._begins[run]
            here = min(count, length - within)
            yield start + within, here
            offset, count, run = offset + here, count - here, run + 1

    def end(self, offset: int) -> int:
        """How long the file is at least once `offset` bytes of the stream are in it."""
        return 0 if offset == 0 else next(start + count for start, count in self.places(offset - 1, 1))
