"""Manifests that are none, do not add up or ask for too much begin nothing; the largest allowed one is taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import sha256

from he_runtime.errors import Reason, SecateurError
from protos.manifest import PIECE_BYTES, Piece, pack_manifest
from protos.native import UploadInfo, UploadOffer
from server.keys.manifest import MAX_PIECES, offered_pieces
from server.keys.settings import KeysConfig
from server.keys.store import KeyStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    made = KeyStore(tmp_path, KeysConfig())
    yield made
    made.close()


def _manifest(*pieces: Piece, total: int | None = None, **changes: Any) -> UploadOffer:
    manifest = pack_manifest(pieces)
    total = sum(p.total_bytes for p in pieces) if total is None else total
    return replace(UploadOffer("11" * 32, "spec", total, sha256(manifest), manifest), **changes)


A, B = Piece("ab" * 32, 100), Piece("cd" * 32, 5000)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (_manifest(A, B, B), Reason.BYTES_MALFORMED),
        (_manifest(A, B, total=5099), Reason.BYTES_MALFORMED),
        (_manifest(A, B, total=5101), Reason.BYTES_MALFORMED),
        (_manifest(A, replace(B, total_bytes=2**64 - 1), total=4999), Reason.BYTES_MALFORMED),
        (_manifest(A, replace(B, total_bytes=2**64 - 100), total=0), Reason.BYTES_MALFORMED),
        (_manifest(replace(A, total_bytes=0), B), Reason.BYTES_MALFORMED),
        (_manifest(A, replace(B, total_bytes=4095)), Reason.BYTES_MALFORMED),
        (_manifest(A, B, sha256="00" * 32), Reason.BYTES_MALFORMED),
        (_manifest(A, B, manifest=pack_manifest([A, B])[:-1]), Reason.BYTES_MALFORMED),
        (_manifest(A, B, manifest=pack_manifest([B, A])), Reason.BYTES_MALFORMED),
        (_manifest(A, B, manifest=bytes(PIECE_BYTES * (MAX_PIECES + 1))), Reason.LIMIT_EXCEEDED),
        (_manifest(A, B, assumed=b"\x01"), Reason.BYTES_MALFORMED),
        (_manifest(A, B, assumed=b"\x01\x02"), Reason.BYTES_MALFORMED),
        (_manifest(A, B, assumed=bytes(1 << 20)), Reason.BYTES_MALFORMED),
        (_manifest(A, B, manifest=b"", assumed=b"\x00\x00"), Reason.BYTES_MALFORMED),
    ],
)
def test_hostile_manifests_are_refused(bad: UploadOffer, expected: Reason, store: KeyStore) -> None:
    with pytest.raises(SecateurError) as caught:
        store.create(bad)
    assert caught.value.reason is expected and store.db.uploads() == []


def test_the_largest_manifest_is_taken(store: KeyStore) -> None:
    pieces = [Piece(sha256(str(n).encode()), 4096) for n in range(MAX_PIECES)]
    largest = _manifest(*pieces)
    assert offered_pieces(largest) == tuple(pieces)
    found = store.create(largest)
    assert isinstance(found, UploadInfo) and found.missing == tuple(range(MAX_PIECES))
    assert store.upload(found.upload_id) == found
