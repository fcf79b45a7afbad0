"""Where the pieces of stored sets lie, and what uploads under way consist of, in the same database as everything else.

A set's file holds all its pieces itself; the index only says where one may be copied from while another set is put together.
So a set that is deleted takes nothing from others, and what it alone had is gone.
"""

from __future__ import annotations

from collections.abc import Sequence

from protos.manifest import Piece, pack_manifest, unpack_manifest

from .manifest import Manifest
from .sql import Execute

__all__ = ["add_manifest", "held_pieces", "index_pieces", "manifest_of", "starts_in"]

_ROWS = 500  # in one statement


def add_manifest(execute: Execute, upload: str, manifest: Manifest) -> None:
    """Record what an upload, by its hash, consists of; goes with the upload's own record."""
    held = "".join("01"[n in manifest.held] for n in range(len(manifest.pieces)))
    execute("INSERT INTO manifests VALUES (?, ?, ?)", upload, pack_manifest(manifest.pieces).hex(), held)


def manifest_of(execute: Execute, upload: str) -> Manifest | None:
    """None for an upload that was offered as a whole, or is no more."""
    for pieces, held in execute("SELECT pieces, held FROM manifests WHERE id_hash = ?", upload):
        return Manifest(unpack_manifest(bytes.fromhex(pieces)), frozenset(n for n, at in enumerate(held) if at == "1"))
    return None


def index_pieces(execute: Execute, tenant: str, blob: str, manifest: Manifest) -> None:
    """Record where the pieces of a stored set lie. The first manifest of the same bytes counts."""
    statement = "UPDATE blobs SET manifest = ? WHERE tenant = ? AND sha256 = ? AND manifest = '' RETURNING 1"
    if not execute(statement, manifest.sha256, tenant, blob):
        return
    rows = [
        (tenant, p.sha256, blob, at, p.total_bytes) for p, at in zip(manifest.pieces, manifest.starts, strict=False)
    ]
    for first in range(0, len(rows), _ROWS):
        some = rows[first : first + _ROWS]
        marks = ", ".join(["(?, ?, ?, ?, ?)"] * len(some))
        execute(f"INSERT INTO pieces VALUES {marks}", *(value for row in some for value in row))


def held_pieces(execute: Execute, tenant: str, params_digest: str, pieces: Sequence[Piece]) -> dict[str, str]:
    """Those of `pieces` that a set of the tenant for the same parameters has, by digest, and one such set of each."""
    found: dict[str, str] = {}
    for first in range(0, len(pieces), _ROWS):
        sizes = {piece.sha256: piece.total_bytes for piece in pieces[first : first + _ROWS]}
        rows = execute(
            "SELECT p.sha256, p.total_bytes, max(p.blob) FROM pieces p "
            "JOIN blobs b ON b.tenant = p.tenant AND b.sha256 = p.blob WHERE p.tenant = ? AND b.params_digest = ? "
            f"AND p.sha256 IN ({', '.join('?' * len(sizes))}) GROUP BY p.sha256, p.total_bytes",
            *(tenant, params_digest, *sizes),
        )
        found.update((sha256, blob) for sha256, total_bytes, blob in rows if sizes[sha256] == total_bytes)
    return found


def starts_in(execute: Execute, tenant: str, blob: str) -> dict[str, int]:
    """Where the pieces of a stored set begin in its file, by digest."""
    rows = execute("SELECT sha256, start FROM pieces WHERE tenant = ? AND blob = ?", tenant, blob)
    return dict(rows)
