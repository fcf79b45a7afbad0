"""A key store that an earlier release wrote is brought to the current schema, its sets and uploads with it."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest
from harness import KEYS, PARAMS, sha256, spec_digest
from pieces import file_of, stored_of

from he_runtime.errors import SecateurError
from server.errors import ConfigError
from server.identity.tenant import Caller, acting_as
from server.keys.schema import MIGRATIONS, VERSION
from server.keys.settings import KeysConfig
from server.keys.store import KeyStore

# The first release's tables, as it wrote them. They are history and do not change with the code.
SCHEMA_1 = """
CREATE TABLE blobs (
    sha256 TEXT PRIMARY KEY, total_bytes INTEGER NOT NULL, params_digest TEXT NOT NULL, last_used REAL NOT NULL
) STRICT;
CREATE TABLE key_sets (
    id_hash TEXT PRIMARY KEY, sha256 TEXT NOT NULL REFERENCES blobs ON DELETE CASCADE,
    client_spec_digest TEXT NOT NULL, created REAL NOT NULL
) STRICT;
CREATE INDEX key_sets_of_blob ON key_sets (sha256, created);
CREATE TABLE uploads (
    id_hash TEXT PRIMARY KEY, sha256 TEXT NOT NULL, total_bytes INTEGER NOT NULL, params_digest TEXT NOT NULL,
    client_spec_digest TEXT NOT NULL, offset INTEGER NOT NULL, touched REAL NOT NULL
) STRICT;
PRAGMA user_version = 1;
"""
OPEN = KEYS[:60_000]


@pytest.fixture
def first_release(tmp_path: Path) -> Path:
    """A store with one key set (id "k") and one upload (id "u") of 40,000 of 60,000 bytes."""
    for name in ("blobs", "parts"):
        (tmp_path / name).mkdir()
    (tmp_path / "blobs" / sha256(KEYS)).write_bytes(KEYS)
    (tmp_path / "parts" / sha256(b"u")).write_bytes(OPEN[:45_000])
    connection = sqlite3.connect(tmp_path / "keys.sqlite3", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(SCHEMA_1)
    now = time.time()
    connection.execute("INSERT INTO blobs VALUES (?, ?, ?, ?)", (sha256(KEYS), len(KEYS), PARAMS, now))
    connection.execute("INSERT INTO key_sets VALUES (?, ?, ?, ?)", (sha256(b"k"), sha256(KEYS), spec_digest(), now))
    row = (sha256(b"u"), sha256(OPEN), len(OPEN), PARAMS, spec_digest(), 40_000, now)
    connection.execute("INSERT INTO uploads VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    connection.close()
    return tmp_path


def test_an_earlier_store_goes_on_as_the_anonymous_tenants(first_release: Path) -> None:
    for _ in range(2):
        store = KeyStore(first_release, KeysConfig())
        assert store.db.driver.read("PRAGMA user_version") == [(VERSION,)]
        assert store.db.driver.read("PRAGMA integrity_check") == [("ok",)]
        assert store.db.driver.read("PRAGMA foreign_key_check") == []
        assert store.find("k").path.read_bytes() == KEYS
        assert store.progress("u").committed_offset == 40_000
        with acting_as(Caller("alice")), pytest.raises(SecateurError, match="cannot find the key set"):
            store.find("k")
        store.close()
    store = KeyStore(first_release, KeysConfig())
    store.append("u", 40_000, OPEN[40_000:])
    assert store.commit(store.complete("u")).sha256 == sha256(OPEN)
    tables = {name for (name,) in store.db.driver.read("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert not [name for name in tables if name.endswith("_1")]
    store.close()


def test_sets_and_uploads_of_the_second_schema_go_on_and_take_pieces(first_release: Path) -> None:
    connection = sqlite3.connect(first_release / "keys.sqlite3", isolation_level=None)
    script = MIGRATIONS[1].format(integer="INTEGER", real="REAL", strict=" STRICT")
    connection.executescript(f"BEGIN; {script} UPDATE uploads SET place = 'local'; PRAGMA user_version = 2; COMMIT;")
    connection.close()
    store = KeyStore(first_release, KeysConfig())
    assert store.find("k").path.read_bytes() == KEYS
    store.append("u", 40_000, OPEN[40_000:])
    assert store.commit(store.complete("u")).sha256 == sha256(OPEN)
    stored_of(store, "front 1", "a", "b")
    keys, sent = stored_of(store, "front 2", "a", "b")
    assert sent == 5000 and store.find(keys.key_set_id).path.read_bytes() == file_of("front 2", "a", "b")
    store.close()


def test_a_migration_that_is_cut_is_done_again(first_release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.keys import sqlite

    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "MIGRATIONS", (sqlite.MIGRATIONS[0], sqlite.MIGRATIONS[1] + "SELECT nonsense;"))
        with pytest.raises(ConfigError, match="nonsense"):
            KeyStore(first_release, KeysConfig())
    store = KeyStore(first_release, KeysConfig())
    assert store.find("k").path.read_bytes() == KEYS
    store.close()


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    KeyStore(tmp_path, KeysConfig()).close()
    connection = sqlite3.connect(tmp_path / "keys.sqlite3")
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    with pytest.raises(ConfigError, match=f"schema {VERSION + 1}, this build reads at most {VERSION}"):
        KeyStore(tmp_path, KeysConfig())
