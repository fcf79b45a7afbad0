"""The tables of the key store and how older ones become them, in one dialect that SQLite and PostgreSQL read.

Ids that are capabilities appear only as sha256 hashes, so a copy of the database opens nothing. `{integer}`, `{real}` and
`{strict}` are what the two databases spell differently.
"""

from __future__ import annotations

from ..identity.tenant import ANONYMOUS

__all__ = ["MIGRATIONS", "VERSION"]

_TABLES_1 = """
CREATE TABLE blobs (
    sha256 TEXT PRIMARY KEY, total_bytes {integer} NOT NULL, params_digest TEXT NOT NULL, last_used {real} NOT NULL
){strict};
CREATE TABLE key_sets (
    id_hash TEXT PRIMARY KEY, sha256 TEXT NOT NULL REFERENCES blobs ON DELETE CASCADE,
    client_spec_digest TEXT NOT NULL, created {real} NOT NULL
){strict};
CREATE INDEX key_sets_of_blob ON key_sets (sha256, created);
CREATE TABLE uploads (
    id_hash TEXT PRIMARY KEY, sha256 TEXT NOT NULL, total_bytes {integer} NOT NULL, params_digest TEXT NOT NULL,
    client_spec_digest TEXT NOT NULL, "offset" {integer} NOT NULL, touched {real} NOT NULL
){strict};
"""

# Everything belongs to a tenant, each key set has a time of last use, each upload a server whose disk holds its part.
_TENANTS_2 = f"""
ALTER TABLE blobs RENAME TO blobs_1;
ALTER TABLE key_sets RENAME TO key_sets_1;
ALTER TABLE uploads RENAME TO uploads_1;
DROP INDEX key_sets_of_blob;
CREATE TABLE blobs (
    tenant TEXT NOT NULL, sha256 TEXT NOT NULL, total_bytes {{integer}} NOT NULL, params_digest TEXT NOT NULL,
    PRIMARY KEY (tenant, sha256)
){{strict}};
CREATE TABLE key_sets (
    id_hash TEXT PRIMARY KEY, tenant TEXT NOT NULL, sha256 TEXT NOT NULL, client_spec_digest TEXT NOT NULL,
    created {{real}} NOT NULL, last_used {{real}} NOT NULL,
    FOREIGN KEY (tenant, sha256) REFERENCES blobs (tenant, sha256) ON DELETE CASCADE
){{strict}};
CREATE INDEX key_sets_of_blob ON key_sets (tenant, sha256, created);
CREATE INDEX key_sets_by_use ON key_sets (last_used);
CREATE TABLE uploads (
    id_hash TEXT PRIMARY KEY, tenant TEXT NOT NULL, sha256 TEXT NOT NULL, total_bytes {{integer}} NOT NULL,
    params_digest TEXT NOT NULL, client_spec_digest TEXT NOT NULL, place TEXT NOT NULL, received {{integer}} NOT NULL,
    touched {{real}} NOT NULL
){{strict}};
CREATE TABLE file_owner (place TEXT PRIMARY KEY){{strict}};
INSERT INTO blobs SELECT '{ANONYMOUS.tenant}', sha256, total_bytes, params_digest FROM blobs_1;
INSERT INTO key_sets SELECT k.id_hash, '{ANONYMOUS.tenant}', k.sha256, k.client_spec_digest, k.created, b.last_used
    FROM key_sets_1 k JOIN blobs_1 b ON b.sha256 = k.sha256;
INSERT INTO uploads SELECT id_hash, '{ANONYMOUS.tenant}', sha256, total_bytes, params_digest, client_spec_digest, '',
    "offset", touched FROM uploads_1;
DROP TABLE key_sets_1;
DROP TABLE uploads_1;
DROP TABLE blobs_1;
"""

# A set may be offered as a manifest of pieces, of which some are taken from sets that the tenant has stored.
_PIECES_3 = """
ALTER TABLE blobs ADD COLUMN manifest TEXT NOT NULL DEFAULT '';
ALTER TABLE uploads ADD COLUMN held_bytes {integer} NOT NULL DEFAULT 0;
CREATE TABLE manifests (
    id_hash TEXT PRIMARY KEY REFERENCES uploads (id_hash) ON DELETE CASCADE, pieces TEXT NOT NULL, held TEXT NOT NULL
){strict};
CREATE TABLE pieces (
    tenant TEXT NOT NULL, sha256 TEXT NOT NULL, blob TEXT NOT NULL, start {integer} NOT NULL,
    total_bytes {integer} NOT NULL, PRIMARY KEY (tenant, sha256, blob),
    FOREIGN KEY (tenant, blob) REFERENCES blobs (tenant, sha256) ON DELETE CASCADE
){strict};
CREATE INDEX pieces_of_blob ON pieces (tenant, blob);
"""

MIGRATIONS = (
    _TABLES_1,
    _TENANTS_2,
    _PIECES_3,
)  # the n-th makes schema n out of schema n - 1; one that was released never changes
VERSION = len(MIGRATIONS)
