"""What only a remote database or object store can do: be shared, cached, damaged, or lost in the middle of a commit."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from harness import KEYS, PARAMS, sha256, spec_digest
from stores import PrivatePostgres, PrivateS3, Setup, begun_whole, make_setup, stored

from he_runtime.errors import Reason, SecateurError
from protos.native import KeySetInfo, UploadInfo, UploadOffer
from server.errors import ConfigError, ServiceError
from server.keys.cache import FileCache
from server.keys.settings import KeysConfig
from server.keys.store import KeyStore

LARGE = b"KEYS" + os.urandom((20 << 20) - 4)  # three parts of a multipart upload


@pytest.fixture
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Setup]:
    made = make_setup(request, tmp_path, "sqlite", "s3")
    yield made
    made.close()


@pytest.fixture
def shared_setup(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Setup]:
    made = make_setup(request, tmp_path, "postgres", "s3")
    yield made
    made.close()


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Setup]:
    made = make_setup(request, tmp_path, "postgres", "files")
    yield made
    made.close()


def test_a_set_of_many_parts_comes_back_whole(bucket: Setup) -> None:
    store = bucket.open()
    keys = stored(store, LARGE)
    assert not store.info(keys.key_set_id).resident and not any(bucket.directory.glob("keys/parts/*"))
    assert store.find(keys.key_set_id).path.read_bytes() == LARGE
    assert store.info(keys.key_set_id).resident


def test_damaged_objects_reach_no_worker(bucket: Setup, s3: PrivateS3) -> None:
    store = bucket.open()
    keys = stored(store, KEYS)
    s3.damage(sha256(KEYS))
    with pytest.raises(SecateurError) as caught:
        store.find(keys.key_set_id)
    assert caught.value.reason is Reason.KEY_SET_UNKNOWN
    again = stored(store, KEYS)
    assert store.find(again.key_set_id).path.read_bytes() == KEYS, "the client sends them again"


def test_what_could_not_be_deleted_is_of_no_use_and_goes_later(bucket: Setup, s3: PrivateS3) -> None:
    store = bucket.open()
    keys = stored(store, KEYS)
    s3.stop()
    try:
        with pytest.raises(SecateurError) as caught:
            store.delete(keys.key_set_id)
        assert caught.value.reason is Reason.STORE_UNAVAILABLE
        with pytest.raises(SecateurError) as caught:
            store.find(keys.key_set_id)
        assert caught.value.reason is Reason.KEY_SET_UNKNOWN
    finally:
        s3.start()
    assert list(store._blobs.names())
    store.keep(sweep=True)
    assert not list(store._blobs.names())


def test_a_server_starts_without_its_bucket_and_is_not_ready(bucket: Setup, s3: PrivateS3) -> None:
    s3.stop()
    try:
        store = bucket.open()
        assert not store.healthy()
    finally:
        s3.start()
    assert not store.problems()
    assert store.find(stored(store, KEYS).key_set_id).path.read_bytes() == KEYS


def test_local_copies_are_bounded_and_fetched_again(bucket: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.keys.cache._IN_USE_SECONDS", 0.0)
    store = bucket.open(cache_bytes=120_000)
    contents = [KEYS[:50_000] + bytes([i]) for i in range(5)]
    keys = [stored(store, content).key_set_id for content in contents]
    for _ in range(2):
        for key_set_id, content in zip(keys, contents, strict=True):
            assert store.find(key_set_id).path.read_bytes() == content
    held = [p for p in (bucket.directory / "keys" / "cache").rglob("*") if p.is_file()]
    assert len(held) == 2


def test_what_a_worker_may_be_about_to_open_is_kept_within_twice_the_budget(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 100)
    for i in range(6):
        data = bytes([i]) * 40
        cache.put(f"t/{i}", sha256(data), [data])
        assert cache.total_bytes <= 200
    assert "t/5" in cache and "t/1" in cache and "t/0" not in cache
    assert cache.put("t/x", sha256(b"other"), [b"bytes"]) is None
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == ["1", "2", "3", "4", "5"]


def test_two_servers_share_a_database_and_a_bucket(shared_setup: Setup) -> None:
    one, two = shared_setup.open("one"), shared_setup.open("two")
    keys = stored(one, KEYS)
    assert two.find(keys.key_set_id).path.read_bytes() == KEYS
    upload = one.create(UploadOffer(PARAMS, spec_digest(), 4, sha256(b"KEYS")))
    assert isinstance(upload, UploadInfo)
    with pytest.raises(SecateurError, match="cannot find the upload"):
        two.progress(upload.upload_id)
    two.keep(sweep=True)
    two.close()
    shared_setup.opened.remove(two)
    shared_setup.open("two")
    one.append(upload.upload_id, 0, b"KEYS")
    assert one.commit(one.complete(upload.upload_id)).total_bytes == 4, "nobody swept what is under way elsewhere"


def test_files_of_another_server_are_not_taken_for_lost(database: Setup) -> None:
    keys = stored(database.open("one"), KEYS)
    with pytest.raises(ConfigError, match="files of another server"):
        database.open("two")
    assert database.reopen(directory="one").find(keys.key_set_id).path.read_bytes() == KEYS


def test_a_connection_lost_while_committing_may_have_committed(
    database: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database did it and could not say so: the file stays where it is recorded, and the client finds its keys."""
    import psycopg

    store = database.open("one")
    ready = store.complete(begun_whole(store, KEYS))
    driver: Any = store.db.driver
    execute = driver._execute

    def lose_the_answer(statement: str, *values: object) -> Any:
        rows = execute(statement, *values)
        if statement == "COMMIT":
            raise psycopg.OperationalError("the connection is lost")
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(driver, "_execute", lose_the_answer)
        with pytest.raises(SecateurError) as caught:
            store.commit(ready)
    assert caught.value.reason is Reason.STORE_UNAVAILABLE
    found = store.create(UploadOffer(PARAMS, spec_digest(), len(KEYS), sha256(KEYS)))
    assert isinstance(found, KeySetInfo)
    assert store.find(found.key_set_id).path.read_bytes() == KEYS


def test_a_database_that_hangs_holds_nobody_for_long(
    database: Setup, postgres: PrivatePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen, it neither answers nor closes the connection, and no limit of its own ends a statement."""
    monkeypatch.setattr("server.keys.postgres._WAIT_SECONDS", 0.3)
    monkeypatch.setattr("server.keys.store._GOOD_SECONDS", 0.0)
    monkeypatch.setattr("server.keys.store._BAD_SECONDS", 0.0)
    store = database.open("one")
    keys = stored(store, KEYS)
    postgres.freeze(True)
    try:
        with ThreadPoolExecutor(4) as pool:
            started = time.monotonic()
            calls = [pool.submit(store.find, keys.key_set_id) for _ in range(4)]
            assert {type(call.exception(20)) for call in calls} == {ServiceError}
            assert time.monotonic() - started < 10
    finally:
        postgres.freeze(False)
    started = time.monotonic()
    while not store.healthy():
        assert time.monotonic() - started < 10
    assert store.find(keys.key_set_id).path.read_bytes() == KEYS


def test_a_database_that_is_absent_is_said_at_the_start_without_its_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    url = f"postgresql://someone:hunter2@/x?host={tmp_path}"
    with pytest.raises(ConfigError, match=r"cannot use keys\.database") as caught:
        KeyStore(tmp_path / "keys", KeysConfig(database=url))
    assert "hunter2" not in str(caught.value) and "hunter2" not in repr(KeysConfig(database=url))
    KeyStore(tmp_path / "keys", KeysConfig()).close()  # the directory is free again


@pytest.mark.parametrize(
    "settings", [{"database": "mysql://x"}, {"bucket": "bucket"}, {"bucket": "s3://"}, {"bucket": "gs://bucket"}]
)
def test_urls_of_other_kinds_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"cannot use keys.{next(iter(settings))}"):
        KeysConfig(**settings)  # type: ignore[arg-type]
