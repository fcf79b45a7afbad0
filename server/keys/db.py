"""Metadata of the key store: which tenant stored what, under which ids, and what is on its way.

Every method is one transaction; the file operations around it are the key store's business. Rows of one tenant are found
by that tenant only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

from protos.manifest import Piece

from .manifest import Manifest
from .pieces import add_manifest, held_pieces, index_pieces, manifest_of, starts_in
from .sql import Driver, Execute, Row

__all__ = ["BlobRow", "KeyDb", "KeySetRow", "UploadRow"]

_MAX_SETS_PER_BLOB = 64  # the same bytes offered again and again must not grow the table without bound
_SETS = """
SELECT k.id_hash, k.tenant, k.sha256, b.total_bytes, b.params_digest, k.client_spec_digest, k.created, k.last_used,
b.manifest FROM key_sets k JOIN blobs b ON b.tenant = k.tenant AND b.sha256 = k.sha256
"""
_BLOBS = """
SELECT b.tenant, b.sha256, b.total_bytes, b.params_digest, coalesce(max(k.last_used), 0)
FROM blobs b LEFT JOIN key_sets k ON k.tenant = b.tenant AND k.sha256 = b.sha256
"""
_BY_USE = "GROUP BY b.tenant, b.sha256, b.total_bytes, b.params_digest ORDER BY 5"
_UPLOADS = (
    "SELECT id_hash, tenant, sha256, total_bytes, params_digest, client_spec_digest, place, received, touched, held_bytes "
    "FROM uploads"
)


@dataclass(frozen=True)
class BlobRow:
    """Stored bytes of a tenant; `last_used` in Unix seconds, of whichever of its key sets was used last."""

    tenant: str
    sha256: str
    total_bytes: int
    params_digest: str
    last_used: float

    @property
    def at(self) -> tuple[str, str]:
        return self.tenant, self.sha256


@dataclass(frozen=True)
class KeySetRow:
    """A capability to a blob, whose manifest has the digest `manifest`, "" where it has none. Times in Unix seconds."""

    id_hash: str
    tenant: str
    sha256: str
    total_bytes: int
    params_digest: str
    client_spec_digest: str
    created: float
    last_used: float
    manifest: str = ""


@dataclass(frozen=True)
class UploadRow:
    """An upload under way, whose part file lies on the disk of server `place`.

    Of `total_bytes`, `held_bytes` are taken from other sets, and the first `received` of the others are durable. With a
    manifest, `sha256` is of that until all pieces are together, and then like any other of the whole file.
    """

    id_hash: str
    tenant: str
    sha256: str
    total_bytes: int
    params_digest: str
    client_spec_digest: str
    place: str
    received: int
    touched: float
    held_bytes: int = 0

    @property
    def sent_bytes(self) -> int:
        return self.total_bytes - self.held_bytes


class KeyDb:
    """The tables, on either database. Safe to call from several threads."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def claim_files(self, place: str) -> bool:
        """Whether `place` is, or hereby becomes, the one server whose disk holds the blobs of this database."""
        with self.driver.transaction() as execute:
            owners = execute("SELECT place FROM file_owner")
            if not owners:
                execute("INSERT INTO file_owner VALUES (?)", place)
            return not owners or owners[0][0] == place

    # Uploads

    def add_upload(self, row: UploadRow, manifest: Manifest | None = None) -> None:
        with self.driver.transaction() as execute:
            execute("INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", *astuple(row))
            if manifest is not None:
                add_manifest(execute, row.id_hash, manifest)

    def manifest(self, id_hash: str) -> Manifest | None:
        return manifest_of(self.driver.read, id_hash)

    def held(self, tenant: str, params_digest: str, pieces: Sequence[Piece]) -> dict[str, str]:
        return held_pieces(self.driver.read, tenant, params_digest, pieces)

    def starts(self, tenant: str, blob: str) -> dict[str, int]:
        return starts_in(self.driver.read, tenant, blob)

    def name_upload(self, id_hash: str, sha256: str) -> bool:
        """Record the digest of an upload's whole file, once its pieces are together; False where the upload is no more."""
        with self.driver.transaction() as execute:
            return bool(execute("UPDATE uploads SET sha256 = ? WHERE id_hash = ? RETURNING 1", sha256, id_hash))

    def upload(self, tenant: str, id_hash: str) -> UploadRow | None:
        rows = self.driver.read(f"{_UPLOADS} WHERE tenant = ? AND id_hash = ?", tenant, id_hash)
        return UploadRow(*rows[0]) if rows else None

    def uploads(self) -> list[UploadRow]:
        """From the longest idle to the most recently touched."""
        return [UploadRow(*row) for row in self.driver.read(f"{_UPLOADS} ORDER BY touched")]

    def adopt_uploads(self, place: str) -> None:
        """Those that were begun before servers had names are this server's."""
        with self.driver.transaction() as execute:
            execute("UPDATE uploads SET place = ? WHERE place = ''", place)

    def set_received(self, id_hash: str, received: int, now: float) -> None:
        with self.driver.transaction() as execute:
            execute("UPDATE uploads SET received = ?, touched = ? WHERE id_hash = ?", received, now, id_hash)

    def drop_upload(self, id_hash: str) -> None:
        with self.driver.transaction() as execute:
            execute("DELETE FROM uploads WHERE id_hash = ?", id_hash)

    # Blobs

    def blob(self, tenant: str, sha256: str) -> BlobRow | None:
        rows = self.driver.read(f"{_BLOBS} WHERE b.tenant = ? AND b.sha256 = ? {_BY_USE}", tenant, sha256)
        return BlobRow(*rows[0]) if rows else None

    def blob_of(self, tenant: str, manifest: str) -> BlobRow | None:
        """The blob that was put together from a manifest of this digest."""
        rows = self.driver.read(f"{_BLOBS} WHERE b.tenant = ? AND b.manifest = ? {_BY_USE}", tenant, manifest)
        return BlobRow(*rows[0]) if rows else None

    def blobs(self) -> list[BlobRow]:
        """From the least to the most recently used."""
        return [BlobRow(*row) for row in self.driver.read(f"{_BLOBS} {_BY_USE}")]

    def drop_blobs(self, blobs: list[tuple[str, str]]) -> None:
        with self.driver.transaction() as execute:
            _drop_blobs(execute, blobs)

    def commit_upload(self, upload: UploadRow, set_hash: str, evicted: list[tuple[str, str]], now: float) -> bool:
        """In one transaction: evict, record the blob and its first key set, and end the upload.

        False, and nothing done, where the upload is no more: another call dropped or committed it.
        """
        with self.driver.transaction() as execute:
            manifest = manifest_of(execute, upload.id_hash)
            if not execute("DELETE FROM uploads WHERE id_hash = ? RETURNING 1", upload.id_hash):
                return False
            _drop_blobs(execute, evicted)
            blob = (upload.tenant, upload.sha256, upload.total_bytes, upload.params_digest)
            execute("INSERT INTO blobs VALUES (?, ?, ?, ?, '') ON CONFLICT DO NOTHING", *blob)
            if manifest is not None:
                index_pieces(execute, upload.tenant, upload.sha256, manifest)
            _add_key_set(execute, set_hash, upload.tenant, upload.sha256, upload.client_spec_digest, now)
            return True

    # Key sets

    def add_key_set(self, set_hash: str, tenant: str, sha256: str, client_spec_digest: str, now: float) -> bool:
        """False, and nothing done, where the blob is no more."""
        with self.driver.transaction() as execute:
            if not execute("SELECT 1 FROM blobs WHERE tenant = ? AND sha256 = ?", tenant, sha256):
                return False
            _add_key_set(execute, set_hash, tenant, sha256, client_spec_digest, now)
            return True

    def key_set(self, tenant: str, set_hash: str) -> KeySetRow | None:
        rows = self.driver.read(f"{_SETS} WHERE k.tenant = ? AND k.id_hash = ?", tenant, set_hash)
        return KeySetRow(*rows[0]) if rows else None

    def key_sets(self, tenant: str, after: str, count: int) -> list[KeySetRow]:
        """A tenant's sets by their hash, at most `count` of those after `after`."""
        rows = self.driver.read(
            f"{_SETS} WHERE k.tenant = ? AND k.id_hash > ? ORDER BY k.id_hash LIMIT ?", tenant, after, count
        )
        return [KeySetRow(*row) for row in rows]

    def drop_key_set(self, tenant: str, set_hash: str) -> tuple[str, str] | None:
        """Forget one capability; returns the blob that went with it, if that was its last one."""
        with self.driver.transaction() as execute:
            rows = execute("DELETE FROM key_sets WHERE tenant = ? AND id_hash = ? RETURNING sha256", tenant, set_hash)
            gone = [sha256 for (sha256,) in rows if not _is_named(execute, tenant, sha256)]
            _drop_blobs(execute, [(tenant, sha256) for sha256 in gone])
            return (tenant, gone[0]) if gone else None

    def expire(self, last_used_before: float) -> list[tuple[str, str]]:
        """Forget key sets that were last used before a time; returns the blobs that went with them."""
        with self.driver.transaction() as execute:
            rows = execute("DELETE FROM key_sets WHERE last_used < ? RETURNING tenant, sha256", last_used_before)
            gone = [(tenant, sha256) for tenant, sha256 in set(rows) if not _is_named(execute, tenant, sha256)]
            _drop_blobs(execute, gone)
            return gone

    def touch(self, used: Mapping[str, float]) -> None:
        """Record when key sets were last used, by their hash."""
        with self.driver.transaction() as execute:
            for set_hash, at in used.items():
                execute("UPDATE key_sets SET last_used = ? WHERE id_hash = ? AND last_used < ?", at, set_hash, at)


def _is_named(execute: Execute, tenant: str, sha256: str) -> bool:
    found: list[Row] = execute("SELECT 1 FROM key_sets WHERE tenant = ? AND sha256 = ? LIMIT 1", tenant, sha256)
    return bool(found)


def _drop_blobs(execute: Execute, blobs: list[tuple[str, str]]) -> None:
    for tenant, sha256 in blobs:
        execute("DELETE FROM blobs WHERE tenant = ? AND sha256 = ?", tenant, sha256)


def _add_key_set(
    execute: Execute, set_hash: str, tenant: str, sha256: str, client_spec_digest: str, now: float
) -> None:
    execute("INSERT INTO key_sets VALUES (?, ?, ?, ?, ?, ?)", set_hash, tenant, sha256, client_spec_digest, now, now)
    execute(
        "DELETE FROM key_sets WHERE tenant = ? AND sha256 = ? AND id_hash NOT IN "
        "(SELECT id_hash FROM key_sets WHERE tenant = ? AND sha256 = ? ORDER BY created DESC LIMIT ?)",
        *(tenant, sha256, tenant, sha256, _MAX_SETS_PER_BLOB),
    )
