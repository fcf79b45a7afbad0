"""Key set files in pieces, as a client offers them, for tests that do not care what is in them."""

from __future__ import annotations

import random

from harness import PARAMS, sha256, spec_digest

from protos.manifest import Piece, pack_manifest
from protos.native import KeySetInfo, MissingPieces, UploadInfo, UploadOffer
from server.keys.store import KeyStore

__all__ = ["begun_of", "file_of", "offer_of", "part", "send", "stored_of"]


def part(tag: str, size: int = 5000) -> bytes:
    """A piece that no other tag has; a front is one that begins as the fake runtime's key sets do."""
    return (b"KEYS" * tag.startswith("front") + random.Random(tag).randbytes(size))[:size]


def file_of(*tags: str) -> bytes:
    return b"".join(part(tag) for tag in tags)


def offer_of(*tags: str, params: str = PARAMS, assumed: bytes = b"") -> UploadOffer:
    manifest = pack_manifest(Piece(sha256(part(tag)), len(part(tag))) for tag in tags)
    return UploadOffer(params, spec_digest(), len(file_of(*tags)), sha256(manifest), manifest, assumed)


def begun_of(store: KeyStore, *tags: str) -> UploadInfo:
    found = store.create(offer_of(*tags))
    assert isinstance(found, UploadInfo)
    return found


def send(store: KeyStore, upload: UploadInfo, *tags: str, chunk: int = 3333) -> int:
    """Send what is missing, from the committed offset on; returns how many bytes that were."""
    stream = b"".join(part(tags[n]) for n in upload.missing)
    assert len(stream) == upload.total_bytes
    for at in range(upload.committed_offset, len(stream), chunk):
        store.append(upload.upload_id, at, stream[at : at + chunk])
    return len(stream) - upload.committed_offset


def stored_of(store: KeyStore, *tags: str) -> tuple[KeySetInfo, int]:
    """The set of these pieces, and how many bytes were sent for it."""
    found = store.create(offer_of(*tags))
    assert not isinstance(found, MissingPieces)
    if isinstance(found, KeySetInfo):
        return found, 0
    sent = send(store, found, *tags)
    return store.commit(store.complete(found.upload_id)), sent
