"""A full disk, a locked or damaged database: a typed answer, nothing half-done, and work again once it is over."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from harness import KEYS, PARAMS, failure, make_config, sha256, spec_digest

from protos.native import KeySetInfo, UploadInfo, UploadOffer
from server.config import KeysConfig
from server.errors import ConfigError
from server.keys import durable, uploads
from server.keys.store import KeyStore
from server.running import start

OTHER_KEYS = b"KEYS of another" + KEYS


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def offer(data: bytes) -> UploadOffer:
    return UploadOffer(PARAMS, spec_digest(), len(data), sha256(data))


def begin(store: KeyStore, data: bytes) -> str:
    upload = store.create(offer(data))
    assert isinstance(upload, UploadInfo)
    store.append(upload.upload_id, 0, data)
    return upload.upload_id


def stored(store: KeyStore, data: bytes) -> KeySetInfo:
    return store.commit(store.complete(begin(store, data)))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    opened = KeyStore(tmp_path / "keys", KeysConfig())
    yield opened
    opened.close()


@pytest.mark.parametrize("where", ["pwrite", "fsync"])
def test_a_full_disk_stops_an_upload_which_then_goes_on(
    serve: Any, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    _, caller = serve()
    good = caller.upload(OTHER_KEYS).key_set_id
    upload_id = caller.begin(KEYS)
    assert caller.send(upload_id, KEYS[:20_000]) == 20_000
    with monkeypatch.context() as patch:
        patch.setattr(uploads.os, where, full)
        refused = failure(lambda: caller.send(upload_id, KEYS[20_000:], 20_000))
        assert (refused.reason, refused.code) == ("LIMIT_EXCEEDED", grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert "disk" in refused.message and refused.retry_after_seconds is not None
        assert caller.infer(good, b"echo:x").ciphertexts, "keys that are there can still be used"
    assert caller.offset(upload_id) == 20_000, "nothing is believed to be written that may not be"
    caller.send(upload_id, KEYS[20_000:], 20_000)
    assert caller.commit(upload_id).sha256 == sha256(KEYS)


def test_a_full_disk_refuses_a_new_upload_and_leaves_none(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, caller = serve()
    with monkeypatch.context() as patch:
        patch.setattr(durable, "sync_directory", full)
        assert failure(lambda: caller.begin(KEYS)).reason == "LIMIT_EXCEEDED"
    assert caller.upload(KEYS).sha256 == sha256(KEYS)


def test_a_database_that_cannot_grow_keeps_the_upload(store: KeyStore) -> None:
    """SQLite itself reports the full disk, in the middle of the transaction that commits an upload."""
    first = stored(store, OTHER_KEYS)
    upload_id = begin(store, KEYS)
    ready = store.complete(upload_id)
    connection = store.db.driver.connection  # type: ignore[attr-defined]
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    long_spec = ready.row.__class__(**{**vars(ready.row), "client_spec_digest": "x" * 100_000})
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.commit(ready.__class__(long_spec, ready.path))
    assert store.find(first.key_set_id).path.read_bytes() == OTHER_KEYS
    connection.execute("PRAGMA max_page_count = 100000")
    committed = store.commit(store.complete(upload_id))
    assert store.find(committed.key_set_id).path.read_bytes() == KEYS


def test_a_commit_that_cannot_be_recorded_is_undone(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    upload_id = begin(store, KEYS)
    with monkeypatch.context() as patch:
        patch.setattr(store.db, "commit_upload", full)
        with pytest.raises(OSError):
            store.commit(store.complete(upload_id))
    assert store.progress(upload_id).committed_offset == len(KEYS), "the upload is as complete as before"
    assert isinstance(store.create(offer(KEYS)), UploadInfo), "and not yet a key set"
    assert store.commit(store.complete(upload_id)).sha256 == sha256(KEYS)


def test_stored_bytes_survive_a_failed_second_commit(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clients upload the same bytes at once; the later commit must not touch what the earlier one stored."""
    early, late = begin(store, KEYS), begin(store, KEYS)
    first = store.commit(store.complete(early))
    with monkeypatch.context() as patch:
        patch.setattr(store.db, "commit_upload", full)
        with pytest.raises(OSError):
            store.commit(store.complete(late))
    assert store.find(first.key_set_id).path.read_bytes() == KEYS
    second = store.commit(store.complete(late))
    assert second.key_set_id != first.key_set_id and not list((store._directory / "parts").iterdir())


def test_an_upload_is_committed_once(store: KeyStore) -> None:
    upload_id = begin(store, KEYS)
    ready = store.complete(upload_id)
    store.commit(ready)
    with pytest.raises(Exception, match="cannot find the upload"):
        store.commit(ready)


def test_a_commit_never_evicts_its_own_bytes(tmp_path: Path) -> None:
    """The budget was lowered below one set between two starts."""
    store = KeyStore(tmp_path, KeysConfig())
    late = begin(store, KEYS)
    stored(store, KEYS)
    store.close()
    store = KeyStore(tmp_path, KeysConfig(budget_bytes=100))
    again = store.commit(store.complete(late))
    assert store.find(again.key_set_id).path.read_bytes() == KEYS
    store.close()


def test_a_locked_database_is_waited_for_and_then_said(serve: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("server.keys.sqlite._LOCKED_SECONDS", 0.2)
    _, caller = serve()
    keys = caller.upload(KEYS).key_set_id
    backup = sqlite3.connect(tmp_path / "state" / "keys" / "keys.sqlite3", isolation_level=None)
    backup.execute("BEGIN IMMEDIATE")
    busy = failure(lambda: caller.begin(OTHER_KEYS))
    assert (busy.reason, busy.code) == ("SERVER_BUSY", grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert busy.retry_after_seconds is not None and "another program" in busy.message
    assert caller.infer(keys, b"echo:x").ciphertexts, "inference needs no write"
    backup.execute("ROLLBACK")
    backup.close()
    assert caller.upload(OTHER_KEYS).sha256 == sha256(OTHER_KEYS)


@pytest.mark.parametrize("content", [b"not a database" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_database_keeps_the_server_from_starting_with_a_reason(tmp_path: Path, content: bytes) -> None:
    config = make_config(tmp_path)
    (tmp_path / "state" / "keys").mkdir(parents=True)
    (tmp_path / "state" / "keys" / "keys.sqlite3").write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot use the key store .*keys\.sqlite3"):
        start(config)


def test_a_full_disk_is_not_healthy_and_an_emptied_one_is(
    store: KeyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.keys.store._GOOD_SECONDS", 0.0)
    monkeypatch.setattr("server.keys.store._BAD_SECONDS", 0.0)
    assert store.healthy()
    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", full)
        assert not store.healthy() and "disk" in store.problems()[0]
    assert store.healthy() and not (tmp_path / "keys" / "probe").exists()
    nearly = KeyStore(tmp_path / "nearly", KeysConfig(min_free_bytes=1 << 61))
    assert not nearly.healthy(), "before it is full"
    nearly.close()


def test_a_server_stops_on_a_full_disk(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server, caller = serve()
    upload_id = caller.begin(KEYS)
    caller.send(upload_id, KEYS[:30_000])
    with monkeypatch.context() as patch:
        patch.setattr(uploads.Uploads, "_sync", full)
        with pytest.raises(grpc.RpcError):
            caller.send(upload_id, KEYS[30_000:60_000], 30_000)
        server.stop()
    _, caller = serve()
    assert caller.offset(upload_id) == 30_000, "only what was durable, and the directory is free again"


def test_a_damaged_version_does_not_keep_the_others_from_being_served(serve: Any, tmp_path: Path) -> None:
    make_config(tmp_path)
    (tmp_path / "models" / "digits" / "12").mkdir()
    (tmp_path / "models" / "digits" / "12" / "model.json").write_text('{"explodes": true}')
    _, caller = serve()
    assert failure(lambda: caller.get_model("digits", "12")).reason == "MODEL_INVALID"
    assert caller.get_model("digits").version == "10"


def test_half_open_uploads_are_bounded_and_give_way(serve: Any) -> None:
    _, caller = serve(keys={"max_uploads": 8, "upload_idle_seconds": 2.0})
    opened = [caller.begin(KEYS[:-1] + bytes([i])) for i in range(8)]
    assert all(failure(lambda: caller.begin(OTHER_KEYS)).reason == "LIMIT_EXCEEDED" for _ in range(20))
    assert caller.send(opened[0], KEYS[:-1] + bytes([0])) == len(KEYS), "those under way go on"
    time.sleep(2.2)
    assert caller.upload(OTHER_KEYS).sha256 == sha256(OTHER_KEYS)
    assert failure(lambda: caller.offset(opened[1])).reason == "UPLOAD_UNKNOWN", "the longest idle gave way"


def test_requests_are_bounded_by_what_the_model_takes(serve: Any, tmp_path: Path) -> None:
    """Not 64 MiB for everyone: callers make the server allocate this much per call."""
    make_config(tmp_path)
    for version in ("digits/2", "digits/10", "other/1"):
        path = tmp_path / "models" / version / "model.json"
        path.write_text(path.read_text().replace("}", ', "max_request_bytes": 1000}'))
    _, caller = serve(limits={"max_chunk_bytes": 1 << 18})
    keys = caller.upload(KEYS).key_set_id
    assert caller.infer(keys, b"echo:" + bytes(995)).ciphertexts
    over = failure(lambda: caller.infer(keys, b"echo:" + bytes(996)))
    assert (over.reason, over.subject) == ("LIMIT_EXCEEDED", "ciphertexts")
    assert caller.get_model().server.max_message_bytes == (1 << 18) + (1 << 16)
    assert failure(lambda: caller.infer(keys, bytes(400_000))).code is grpc.StatusCode.RESOURCE_EXHAUSTED
