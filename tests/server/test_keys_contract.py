"""One contract for every combination of SQLite or PostgreSQL with files or S3, the latter of each against a real server."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from harness import KEYS, OTHER_PARAMS, PARAMS, sha256
from stores import Setup, begun, begun_whole, blobs, offer, reason, stored

from he_runtime.errors import Reason, SecateurError
from protos.native import KeySetInfo, UploadInfo
from server.identity.tenant import Caller, acting_as
from server.keys import shelf

ALICE, BOB = Caller("alice"), Caller("bob")


def unique(tag: str, size: int = 50_000) -> bytes:
    return (b"KEYS" + tag.encode() * size)[:size]


def test_stored_used_described_and_deleted(setup: Setup) -> None:
    store = setup.open()
    before = time.time() * 1e3
    with acting_as(ALICE):
        keys = stored(store)
        found = store.find(keys.key_set_id)
        assert found.path.read_bytes() == KEYS and (found.sha256, found.params_digest) == (sha256(KEYS), PARAMS)
        info = store.info(keys.key_set_id)
        assert info.resident and info.handle == sha256(keys.key_set_id.encode())
        assert before - 1 <= info.created_unix_ms <= info.last_used_unix_ms < info.expires_unix_ms
        assert info.expires_unix_ms - info.last_used_unix_ms == round(30 * 86400e3)
        same = store.create(offer(KEYS))
        assert isinstance(same, KeySetInfo) and same.key_set_id != keys.key_set_id, "the bytes need not be sent again"
        store.delete(keys.key_set_id)
        assert reason(lambda: store.find(keys.key_set_id)) is Reason.KEY_SET_UNKNOWN
        assert store.find(same.key_set_id).path.read_bytes() == KEYS
        store.delete(same.key_set_id)
    assert blobs(store) == [] and not found.path.exists() and not any(setup.directory.rglob(sha256(KEYS)))


def test_a_tenant_has_no_use_of_anothers_ids(setup: Setup) -> None:
    store = setup.open()
    with acting_as(ALICE):
        keys, under_way = stored(store), begun(store, unique("open"))
    strange = "0" * 32
    calls: list[Callable[[str], object]] = [
        store.find,
        store.info,
        store.touch,
        store.delete,
        lambda name: store.info("", sha256(name.encode())),
        lambda name: store.delete("", sha256(name.encode())),
    ]
    uploading: list[Callable[[str], object]] = [
        lambda name: store.append(name, 0, b"x"),
        store.progress,
        store.complete,
    ]
    with acting_as(BOB):
        for call in calls:
            assert _said(call, keys.key_set_id) == _said(call, strange)
        for call in uploading:
            assert _said(call, under_way) == _said(call, strange)
        assert store.listing().key_sets == ()
    with acting_as(ALICE):
        store.append(under_way, 0, b"KEYS")
        assert store.progress(under_way).committed_offset == 4, "also where the part file is open"
        assert store.find(keys.key_set_id).path.read_bytes() == KEYS
    with acting_as(BOB):
        assert _said(uploading[0], under_way) == _said(uploading[0], strange)


def _said(call: Callable[[str], object], name: str) -> tuple[Reason, str]:
    with pytest.raises(SecateurError) as caught:
        call(name)
    return caught.value.reason, caught.value.message


def test_naming_anothers_digest_gives_nothing_and_shows_nothing(setup: Setup) -> None:
    store = setup.open()
    with acting_as(ALICE):
        keys = stored(store)
    with acting_as(BOB):
        assert isinstance(store.create(offer(KEYS)), UploadInfo), "as if nobody had stored these bytes"
        assert isinstance(store.create(offer(KEYS, OTHER_PARAMS)), UploadInfo), "not even their parameters show"
        own = stored(store)
        store.delete(own.key_set_id)
        assert reason(lambda: store.find(own.key_set_id)) is Reason.KEY_SET_UNKNOWN
    with acting_as(ALICE):
        assert store.find(keys.key_set_id).path.read_bytes() == KEYS, "one tenant's deletion is not another's"


def test_the_same_bytes_of_two_tenants_are_two_blobs(setup: Setup) -> None:
    store = setup.open()
    names = set()
    for who in (ALICE, BOB):
        with acting_as(who):
            names.add(store.find(stored(store).key_set_id).name)
    assert len(names) == 2, "workers cache by this name, so a time tells nothing either"
    assert blobs(store) == [sha256(KEYS)] * 2


def test_unused_sets_expire_and_use_and_touch_prolong(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    clock = SimpleNamespace(time=lambda: now)
    monkeypatch.setattr(shelf, "time", clock)
    store = setup.open(ttl_seconds=100.0)
    with acting_as(ALICE):
        unused, used, touched = (stored(store, unique(tag)).key_set_id for tag in ("1", "2", "3"))
        now += 60
        store.find(used)
        assert store.touch(touched).expires_unix_ms == round((now + 100) * 1e3)
        now += 60
        assert reason(lambda: store.find(unused)) is Reason.KEY_SET_UNKNOWN
        assert reason(lambda: store.touch(unused)) is Reason.KEY_SET_UNKNOWN
        store.keep()
        assert sorted(blobs(store)) == sorted([sha256(unique("2")), sha256(unique("3"))])
        store = setup.reopen(ttl_seconds=100.0)
        assert store.find(used).path.exists() and store.info(touched).resident is not None, (
            "recorded, not only remembered"
        )


def test_a_listing_is_the_tenants_own_in_pages(setup: Setup) -> None:
    store = setup.open()
    with acting_as(BOB):
        stored(store)
    with acting_as(ALICE):
        made = {stored(store, unique(str(i))).key_set_id for i in range(5)}
        first = store.listing(page_size=3)
        rest = store.listing(page_size=3, page_token=first.next_page_token)
        assert (len(first.key_sets), len(rest.key_sets), rest.next_page_token) == (3, 2, "")
        handles = {k.handle for k in first.key_sets + rest.key_sets}
        assert handles == {sha256(i.encode()) for i in made} and not any(k.key_set_id for k in first.key_sets)
        store.touch("", first.key_sets[0].handle)
        store.delete("", first.key_sets[0].handle)
        assert len(store.listing().key_sets) == 4
        assert reason(lambda: store.find(first.key_sets[1].handle)) is Reason.KEY_SET_UNKNOWN, "a handle opens nothing"
        assert reason(lambda: store.listing(0, "\0' OR 1=1")) is Reason.BYTES_MALFORMED
    assert reason(store.listing) is Reason.PERMISSION_DENIED


def test_a_tenants_budget_costs_only_that_tenant(setup: Setup) -> None:
    store = setup.open(tenant_budget_bytes=120_000, budget_bytes=220_000)
    with acting_as(BOB):
        oldest = stored(store, unique("bob")).key_set_id
    with acting_as(ALICE):
        first, second, third = (stored(store, unique(tag)).key_set_id for tag in ("1", "2", "3"))
        assert reason(lambda: store.find(first)) is Reason.KEY_SET_UNKNOWN, "she evicts her own"
        assert store.find(second) and store.find(third)
        assert reason(lambda: store.create(offer(unique("big", 120_001)))) is Reason.LIMIT_EXCEEDED
    with acting_as(BOB):
        assert store.find(oldest).path.exists(), "older than hers, but another tenant's"
        stored(store, unique("more"))
    with acting_as(Caller("carol")):
        stored(store, unique("carol"))  # the fifth of four that fit in all
    with acting_as(ALICE):
        assert reason(lambda: store.find(second)) is Reason.KEY_SET_UNKNOWN


def test_uploads_under_way_are_bounded_per_tenant(setup: Setup) -> None:
    store = setup.open(tenant_uploads=2)
    with acting_as(BOB):
        oldest = begun(store, unique("1"))
    with acting_as(ALICE):
        first = begun(store, unique("1"))
        begun(store, unique("2"))
        assert reason(lambda: begun(store, unique("3"))) is Reason.LIMIT_EXCEEDED
        store = setup.reopen(tenant_uploads=2, upload_idle_seconds=1e-6)
        begun(store, unique("3"))
        assert reason(lambda: store.progress(first)) is Reason.UPLOAD_UNKNOWN, "her own longest idle gave way"
    with acting_as(BOB):
        assert store.progress(oldest).committed_offset == 0


def test_sets_and_uploads_survive_a_restart(setup: Setup) -> None:
    store = setup.open()
    with acting_as(ALICE):
        keys, upload_id = stored(store), begun(store, unique("open"))
        store.append(upload_id, 0, unique("open")[:30_000])
        store = setup.reopen()
        assert store.progress(upload_id).committed_offset == 30_000
        store.append(upload_id, 30_000, unique("open")[30_000:])
        assert store.commit(store.complete(upload_id)).sha256 == sha256(unique("open"))
        assert store.find(keys.key_set_id).path.read_bytes() == KEYS


def test_orphans_are_swept_and_lost_bytes_forgotten(setup: Setup, tmp_path: Path) -> None:
    store = setup.open()
    with acting_as(ALICE):
        kept, lost, upload_id = stored(store), stored(store, unique("lost")), begun(store, unique("open"))
    part = tmp_path / "part"
    part.write_bytes(b"x" * 10)
    store._blobs.send(part, "someone/orphan")
    store._blobs.place(part, "someone/orphan")
    name = next(n for n in store._blobs.names() if n.endswith(sha256(unique("lost"))))
    store._blobs.delete(name)
    store.keep(sweep=True)
    assert blobs(store) == [sha256(KEYS)]
    with acting_as(ALICE):
        assert reason(lambda: store.find(lost.key_set_id)) is Reason.KEY_SET_UNKNOWN
        assert isinstance(store.create(offer(unique("lost"))), UploadInfo)
        assert store.find(kept.key_set_id).path.exists() and store.progress(upload_id).committed_offset == 0


def test_what_is_being_committed_is_no_orphan(setup: Setup) -> None:
    """Another server sweeps between the move of a blob and its record."""
    store = setup.open()
    with acting_as(ALICE):
        ready = store.complete(begun_whole(store, KEYS))
        store._blobs.send(ready.path, ready.name)
        store._blobs.place(ready.path, ready.name)
        store.keep(sweep=True)
        assert blobs(store) == [sha256(KEYS)]
        store._restore(ready.row)
        keys = store.commit(ready)
        assert store.find(keys.key_set_id).path.read_bytes() == KEYS


def test_deleting_ends_uploads_of_the_same_bytes(setup: Setup) -> None:
    store = setup.open()
    with acting_as(BOB):
        others = begun_whole(store, KEYS)
    with acting_as(ALICE):
        late, keys = begun_whole(store, KEYS), stored(store)
        store.delete(keys.key_set_id)
        assert reason(lambda: store.progress(late)) is Reason.UPLOAD_UNKNOWN
    with acting_as(BOB):
        assert store.progress(others).committed_offset == len(KEYS), "another tenant's goes on"


def test_an_outage_loses_nothing(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Database or object store stop, and start again: typed answers meanwhile, and then everything goes on."""
    monkeypatch.setattr("server.keys.store._GOOD_SECONDS", 0.0)
    monkeypatch.setattr("server.keys.store._BAD_SECONDS", 0.0)
    store = setup.open()
    assert store.healthy()
    with acting_as(ALICE):
        keys, upload_id = stored(store), begun(store, unique("open"))
        store.append(upload_id, 0, unique("open")[:30_000])
        for number, (down, up) in enumerate(setup.outages):
            ready = store.complete(begun_whole(store, unique(f"half{number}")))
            down()
            try:
                assert not store.healthy() and store.problems()
                assert reason(lambda ready=ready: store.commit(ready)) is Reason.STORE_UNAVAILABLE  # type: ignore[misc]
                if len(setup.outages) == 1 and "database" in setup.settings:
                    assert reason(lambda: store.find(keys.key_set_id)) is Reason.STORE_UNAVAILABLE
            finally:
                up()
            started = time.monotonic()
            while not store.healthy():
                assert time.monotonic() - started < 10.0, store.problems()
            assert store.commit(ready).sha256 == ready.row.sha256, "the commit is tried again"
        assert store.progress(upload_id).committed_offset == 30_000
        store.append(upload_id, 30_000, unique("open")[30_000:])
        done = store.commit(store.complete(upload_id))
        assert store.find(done.key_set_id).path.read_bytes() == unique("open")
        assert store.find(keys.key_set_id).path.read_bytes() == KEYS
