"""Making an upload whole: what was sent is checked, and what was not is copied from where the tenant's sets have it.

The part file of an upload with a manifest has the layout of the whole set from the start, so what is sent goes where it
belongs, and the rest is filled in here. Each piece is compared with its digest; then the upload is recorded under the digest
of the whole file, and from there on it is like one that was sent whole. Until that record everything can be done again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from he_runtime.errors import Reason

from ..errors import ServiceError
from . import durable
from .blobs import Blobs, blob_name
from .db import KeyDb, UploadRow
from .manifest import Manifest
from .shelf import Shelf
from .uploads import Uploads, needing_part, unknown_upload

__all__ = ["Assembly"]

_BLOCK_BYTES = 1 << 20


class Assembly:
    """Thread-safe; methods block."""

    def __init__(self, db: KeyDb, blobs: Blobs, shelf: Shelf, uploads: Uploads, on_step: Callable[[str], None]) -> None:
        self._db = db
        self._blobs = blobs
        self._shelf = shelf
        self._uploads = uploads
        self._on_step = on_step

    def whole(self, row: UploadRow) -> UploadRow:
        """An upload of which everything that was to be sent is there, as the whole file that it announced.

        Raises DIGEST_MISMATCH where what was sent is not what was announced, UPLOAD_UNKNOWN where pieces that were not to
        be sent are no longer stored; both drop the upload.
        """
        manifest = self._db.manifest(row.id_hash)
        with needing_part():
            if manifest is not None:
                return self._put_together(row, manifest)
            self._check(row)
            return row

    def _check(self, row: UploadRow) -> None:
        if durable.hash_file(self._uploads.path(row.id_hash)) != row.sha256:
            raise self._mismatch(row)

    def _mismatch(self, row: UploadRow) -> ServiceError:
        self._uploads.drop(row.id_hash)
        return ServiceError(
            "cannot commit the upload: got bytes that do not have the announced sha256; try uploading again",
            Reason.DIGEST_MISMATCH,
            subject="sha256",
        )

    def _put_together(self, offered: UploadRow, manifest: Manifest) -> UploadRow:
        with self._uploads.completing(offered.tenant, offered.id_hash) as row:
            if row.sha256 != manifest.sha256:  # this was done before
                self._check(row)
                return row
            sources = self._fill(row, manifest)
            self._on_step("filled")
            sha256 = self._checked(row, manifest, sources)
            self._on_step("checked")
            if not self._db.name_upload(row.id_hash, sha256):
                raise unknown_upload()
            self._on_step("named")
            return replace(row, sha256=sha256)

    def _fill(self, row: UploadRow, manifest: Manifest) -> dict[int, str]:
        """Copy the pieces that were not sent to their places, durably; returns the set that each is from, by number."""
        wanted = {manifest.pieces[n].sha256: n for n in manifest.held}
        sources: dict[int, str] = {}
        if not wanted:
            return sources
        descriptor = os.open(self._uploads.path(row.id_hash), os.O_WRONLY | os.O_CLOEXEC)
        try:
            while wanted:
                pieces = [manifest.pieces[n] for n in wanted.values()]
                held = self._db.held(row.tenant, row.params_digest, pieces)
                if len(held) < len(wanted):
                    raise self._gone(row)
                ((blob, _),) = Counter(held.values()).most_common(1)
                for sha256 in self._copy(row.tenant, blob, wanted, manifest, descriptor):
                    sources[wanted.pop(sha256)] = blob
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return sources

    def _copy(self, tenant: str, blob: str, wanted: Mapping[str, int], manifest: Manifest, target: int) -> list[str]:
        """Copy what one set has of the wanted pieces; returns their digests. A set whose bytes are lost is forgotten."""
        found = {sha256: start for sha256, start in self._db.starts(tenant, blob).items() if sha256 in wanted}
        try:
            with self._blobs.local(blob_name(tenant, blob), blob).open("rb") as file:
                for sha256, start in found.items():
                    number = wanted[sha256]
                    _copy_bytes(
                        file.fileno(), start, target, manifest.starts[number], manifest.pieces[number].total_bytes
                    )
        except FileNotFoundError:
            self._shelf.forget([(tenant, blob)])
            return []
        return list(found)

    def _checked(self, row: UploadRow, manifest: Manifest, sources: Mapping[int, str]) -> str:
        """The digest of the whole file, each piece of which has its own."""
        path = self._uploads.path(row.id_hash)
        digests, whole = durable.hash_pieces(path, [p.total_bytes for p in manifest.pieces])
        wrong = [n for n, piece in enumerate(manifest.pieces) if piece.sha256 != digests[n]]
        if wrong and all(n in sources for n in wrong):  # the disk's fault and not the caller's
            self._shelf.forget(sorted({(row.tenant, sources[n]) for n in wrong}))
            raise self._gone(row)
        if wrong or path.stat().st_size != row.total_bytes:
            raise self._mismatch(row)
        return whole

    def _gone(self, row: UploadRow) -> ServiceError:
        self._uploads.drop(row.id_hash)
        return ServiceError(
            "cannot commit the upload: stored pieces that it builds on are no longer there, need all of them; try creating "
            "the upload again",
            Reason.UPLOAD_UNKNOWN,
            subject="upload_id",
        )


def _copy_bytes(source: int, start: int, target: int, at: int, count: int) -> None:
    """FileNotFoundError where the source ends before."""
    while count:
        block = os.pread(source, min(count, _BLOCK_BYTES), start)
        if not block:
            raise FileNotFoundError("a stored set is shorter than recorded")
        view = memoryview(block)
        while view:
            written = os.pwrite(target, view, at)
            view, at = view[written:], at + written
        start, count = start + len(block), count - len(block)
