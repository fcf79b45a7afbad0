"""Somebody else's manifest, checked against limits, and what an upload knows of the pieces it consists of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from he_runtime.errors import Reason
from protos.manifest import PIECE_BYTES, Piece, Segments, pack_manifest, starts, unpack_manifest
from protos.native import UploadOffer

from ..errors import ServiceError

__all__ = ["MAX_PIECES", "Manifest", "offered_pieces"]

MAX_PIECES = 4096  # several times what the largest plans need
_MIN_PIECE_BYTES = 4096  # the front excepted: bounds what the database records for each byte that is stored


@dataclass(frozen=True)
class Manifest:
    """The pieces of a set, and the numbers of those that are taken from other sets of the tenant and not sent."""

    pieces: tuple[Piece, ...]
    held: frozenset[int]

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(pack_manifest(self.pieces)).hexdigest()

    @cached_property
    def starts(self) -> list[int]:
        """Where each piece begins in the file, and last where the file ends."""
        return starts(self.pieces)

    @property
    def missing(self) -> tuple[int, ...]:
        return tuple(n for n in range(len(self.pieces)) if n not in self.held)

    @property
    def held_bytes(self) -> int:
        return sum(self.pieces[n].total_bytes for n in self.held)

    def segments(self) -> Segments:
        """Where in the file the stream of what is sent belongs."""
        return Segments((self.starts[n], self.pieces[n].total_bytes) for n in self.missing)


def offered_pieces(offer: UploadOffer) -> tuple[Piece, ...]:
    """The checked pieces of an offer, none where it has no manifest.

    Raises LIMIT_EXCEEDED for too many, BYTES_MALFORMED for what is no manifest of `total_bytes` with that digest.
    """
    if not offer.manifest:
        if offer.assumed:
            raise _malformed("assumed pieces and no manifest", "a manifest", "assumed")
        return ()
    if len(offer.manifest) > MAX_PIECES * PIECE_BYTES:
        raise ServiceError(
            f"cannot start the upload: got a manifest of {len(offer.manifest)} bytes, need at most {MAX_PIECES} pieces; "
            "try offering the file as a whole",
            Reason.LIMIT_EXCEEDED,
            subject="manifest",
        )
    if len(offer.manifest) % PIECE_BYTES:
        raise _malformed(f"a manifest of {len(offer.manifest)} bytes", f"{PIECE_BYTES} for each piece", "manifest")
    if hashlib.sha256(offer.manifest).hexdigest() != offer.sha256:
        raise _malformed("a manifest of another digest than announced", "its sha256", "sha256")
    pieces = unpack_manifest(offer.manifest)
    _check_sizes(pieces, offer.total_bytes)
    if len({p.sha256 for p in pieces}) != len(pieces):
        raise _malformed("a piece twice", "each once", "manifest")
    if offer.assumed and (len(offer.assumed) != len(pieces) or set(offer.assumed) - {0, 1}):
        raise _malformed("a list of assumed pieces that does not fit", "a byte, 0 or 1, for each piece", "assumed")
    return pieces


def _check_sizes(pieces: tuple[Piece, ...], total_bytes: int) -> None:
    if pieces[0].total_bytes < 1 or any(p.total_bytes < _MIN_PIECE_BYTES for p in pieces[1:]):
        raise _malformed("a piece that is too small", f"at least {_MIN_PIECE_BYTES} bytes after the front", "manifest")
    total = sum(p.total_bytes for p in pieces)
    if total != total_bytes:
        raise _malformed(f"pieces of {total} bytes together", f"the {total_bytes} announced", "total_bytes")


def _malformed(got: str, need: str, subject: str) -> ServiceError:
    return ServiceError(
        f"cannot start the upload: got {got}, need {need}; try a manifest of the file's front and of each key in it",
        Reason.BYTES_MALFORMED,
        subject=subject,
    )
