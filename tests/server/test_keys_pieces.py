"""Key sets offered in pieces: only what the tenant has not stored is sent, in all combinations of databases and blobs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import OTHER_PARAMS, sha256
from pieces import begun_of, file_of, offer_of, part, send, stored_of
from stores import PrivateS3, Setup, blobs, make_setup, offer, reason, stored

from he_runtime.errors import Reason, SecateurError
from protos.native import KeySetInfo, MissingPieces, UploadInfo
from server.identity.tenant import Caller, acting_as
from server.keys.store import KeyStore

ALICE, BOB = Caller("alice"), Caller("bob")
ONE = ("front 1", "a", "b", "c")
TWO = ("front 2", "a", "new", "c")  # sent: front and one key; the last piece is one that is not sent


@pytest.fixture
def embedded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Setup]:
    made = make_setup(request, tmp_path, "sqlite", "files")
    yield made
    made.close()


def held(store: KeyStore) -> int:
    ((count,),) = store.db.driver.read("SELECT count(*) FROM pieces")
    return int(count)


def test_only_new_pieces_are_sent_and_the_set_is_whole(setup: Setup) -> None:
    store = setup.open()
    with acting_as(ALICE):
        first, sent = stored_of(store, *ONE)
        assert sent == len(file_of(*ONE)) and first.sha256 == sha256(file_of(*ONE))
        upload = begun_of(store, *TWO)
        assert upload.missing == (0, 2) and upload.total_bytes == len(part("front 2")) + len(part("new"))
        send(store, upload, *TWO)
        second = store.commit(store.complete(upload.upload_id))
        assert (second.sha256, second.total_bytes) == (sha256(file_of(*TWO)), len(file_of(*TWO)))
        for keys, tags in ((first, ONE), (second, TWO)):
            assert store.find(keys.key_set_id).path.read_bytes() == file_of(*tags)
        third, sent = stored_of(store, "front 3", "a", "new", "b", "c")
        assert sent == len(part("front 3")), "pieces of several sets"
        assert store.find(third.key_set_id).path.read_bytes() == file_of("front 3", "a", "new", "b", "c")


def test_a_set_is_its_own_and_deletion_deletes(setup: Setup) -> None:
    store = setup.open()
    with acting_as(ALICE):
        (first, _), (second, _) = stored_of(store, *ONE), stored_of(store, *TWO)
        store.delete(first.key_set_id)
        assert blobs(store) == [sha256(file_of(*TWO))]
        assert store.find(second.key_set_id).path.read_bytes() == file_of(*TWO)
        assert begun_of(store, "front 4", "a", "b").missing == (0, 2), "what the deleted set alone had is gone"
        store.delete(second.key_set_id)
        assert blobs(store) == [] and held(store) == 0
        assert begun_of(store, "front 5", "a", "c").missing == (0, 1, 2)


def test_a_tenant_has_no_use_of_anothers_pieces_nor_of_those_for_other_parameters(setup: Setup) -> None:
    store = setup.open()
    with acting_as(ALICE):
        stored_of(store, *ONE)
        other = store.create(offer_of(*TWO, params=OTHER_PARAMS))
        assert isinstance(other, UploadInfo) and other.missing == (0, 1, 2, 3)
    with acting_as(BOB):
        assert begun_of(store, *ONE).missing == (0, 1, 2, 3), "as if nobody had stored these"
        assert store.create(offer_of(*ONE, assumed=bytes([0, 1, 1, 0]))) == MissingPieces((1, 2))
        own, _ = stored_of(store, *TWO)
        store.delete(own.key_set_id)
    with acting_as(ALICE):
        assert begun_of(store, *TWO).missing == (0, 2), "one tenant's deletion is not another's"


def test_an_offer_that_assumes_too_much_begins_nothing(setup: Setup) -> None:
    store = setup.open()
    with acting_as(ALICE):
        stored_of(store, *ONE)
        assert store.create(offer_of("front 3", "a", "x", "y", assumed=bytes([0, 1, 1, 1]))) == MissingPieces((2, 3))
        assert store.db.uploads() == []
        found = store.create(offer_of("front 3", "a", "x", "b", assumed=bytes([0, 1, 0, 1])))
        assert isinstance(found, UploadInfo) and found.missing == (0, 2)


def test_the_same_set_is_found_by_manifest_and_by_file(setup: Setup) -> None:
    store = setup.open()
    with acting_as(ALICE):
        whole = stored(store, file_of(*ONE))
        assert begun_of(store, *ONE).missing == (0, 1, 2, 3), "a file that came whole is not looked into"
        again, _ = stored_of(store, *ONE)
        assert blobs(store) == [whole.sha256] and again.key_set_id != whole.key_set_id
        found = store.create(offer_of(*ONE))
        assert isinstance(found, KeySetInfo) and found.sha256 == whole.sha256
        assert isinstance(store.create(offer(file_of(*ONE))), KeySetInfo)
        assert begun_of(store, *TWO).missing == (0, 2), "its pieces are known since"
        assert reason(lambda: store.create(offer_of(*ONE, params=OTHER_PARAMS))) is Reason.KEY_PARAMETERS_DIFFER


def test_an_upload_with_gaps_goes_on_after_a_restart(setup: Setup) -> None:
    store = setup.open()
    tags = ("front 2", "a", "new", "b", "newer", "c")
    with acting_as(ALICE):
        stored_of(store, *ONE)
        upload = begun_of(store, *tags)
        stream = part("front 2") + part("new") + part("newer")
        for at in (7_000, 12_000):
            begin = store.progress(upload.upload_id).committed_offset
            store.append(upload.upload_id, begin, stream[begin:at])
            assert store.progress(upload.upload_id).committed_offset == at
            store = setup.reopen()
        upload = store.upload(upload.upload_id)
        assert (upload.missing, upload.total_bytes, upload.committed_offset) == ((0, 2, 4), len(stream), 12_000)
        assert reason(lambda: store.complete(upload.upload_id)) is Reason.UPLOAD_INCOMPLETE
        assert reason(lambda: store.append(upload.upload_id, 12_000, stream)) is Reason.SIZE_MISMATCH
        send(store, upload, *tags)
        store = setup.reopen()
        ready = store.complete(upload.upload_id)
        store = setup.reopen()
        assert store.progress(upload.upload_id).committed_offset == len(stream), "put together, and not committed"
        keys = store.commit(store.complete(upload.upload_id))
        assert store.find(keys.key_set_id).path.read_bytes() == file_of(*tags) and ready.row.sha256 == keys.sha256


def test_what_is_deleted_before_the_commit_is_not_used(setup: Setup) -> None:
    store = setup.open()
    with acting_as(ALICE):
        first, _ = stored_of(store, *ONE)
        upload = begun_of(store, *TWO)
        send(store, upload, *TWO)
        store.delete(first.key_set_id)
        assert reason(lambda: store.complete(upload.upload_id)) is Reason.UPLOAD_UNKNOWN
        assert store.db.uploads() == [] and not any((setup.directory / "keys" / "parts").iterdir())
        assert begun_of(store, *TWO).missing == (0, 1, 2, 3)


def test_copies_of_what_is_deleted_are_deleted_too(setup: Setup) -> None:
    """Between putting a set together and recording it."""
    store = setup.open()
    with acting_as(ALICE):
        first, _ = stored_of(store, *ONE)
        upload = begun_of(store, *TWO)
        send(store, upload, *TWO)
        ready = store.complete(upload.upload_id)
        assert part("c") in ready.path.read_bytes()
        store.delete(first.key_set_id)
        assert not any((setup.directory / "keys" / "parts").iterdir()) and blobs(store) == []
        assert reason(lambda: store.commit(ready)) is Reason.UPLOAD_UNKNOWN
        assert blobs(store) == [] and held(store) == 0


def test_deleting_ends_uploads_of_the_same_manifest_only(setup: Setup) -> None:
    store = setup.open()
    with acting_as(ALICE):
        stored_of(store, "front 9", *ONE[1:])
        same, other = begun_of(store, *ONE), begun_of(store, *TWO)
        keys, _ = stored_of(store, *ONE)
        store.delete(keys.key_set_id)
        assert reason(lambda: store.progress(same.upload_id)) is Reason.UPLOAD_UNKNOWN
        send(store, other, *TWO)
        assert store.commit(store.complete(other.upload_id)).sha256 == sha256(file_of(*TWO))


def test_lost_and_damaged_sources_are_forgotten(setup: Setup, request: pytest.FixtureRequest) -> None:
    """The caller is told to begin again, and is then asked for everything."""
    store = setup.open()
    with acting_as(ALICE):
        for damage in (False, True):
            source, _ = stored_of(store, *ONE)
            upload = begun_of(store, *TWO)
            send(store, upload, *TWO)
            name = next(n for n in store._blobs.names() if n.endswith(source.sha256))
            if not damage:
                store._blobs.delete(name)
            elif "bucket" in setup.settings:
                bucket: PrivateS3 = request.getfixturevalue("s3")
                bucket.damage(source.sha256)
            else:
                path = store.find(source.key_set_id).path
                path.write_bytes(file_of(*ONE).replace(part("c"), part("C")))
            assert reason(lambda upload=upload: store.complete(upload.upload_id)) is Reason.UPLOAD_UNKNOWN  # type: ignore[misc]
            assert reason(lambda source=source: store.find(source.key_set_id)) is Reason.KEY_SET_UNKNOWN  # type: ignore[misc]
            assert begun_of(store, *TWO).missing == (0, 1, 2, 3) and blobs(store) == []


def test_wrong_bytes_are_refused_piece_by_piece(embedded: Setup) -> None:
    store = embedded.open()
    with acting_as(ALICE):
        stored_of(store, *ONE)
        upload = begun_of(store, *TWO)
        stream = part("front 2") + part("NEW")
        store.append(upload.upload_id, 0, stream)
        assert reason(lambda: store.complete(upload.upload_id)) is Reason.DIGEST_MISMATCH
        assert store.db.uploads() == [] and blobs(store) == [sha256(file_of(*ONE))]


def test_the_whole_set_counts_against_budgets_and_not_what_is_sent(setup: Setup) -> None:
    store = setup.open(tenant_budget_bytes=45_000, upload_budget_bytes=41_000)
    with acting_as(ALICE):
        first, _ = stored_of(store, *ONE)  # 20 KB
        second, _ = stored_of(store, *TWO)
        third, sent = stored_of(store, "front 3", *TWO[1:])
        assert sent == len(part("front 3")), "from the second; the first had to go"
        assert reason(lambda: store.find(first.key_set_id)) is Reason.KEY_SET_UNKNOWN and store.find(second.key_set_id)
        assert store.find(third.key_set_id).path.read_bytes() == file_of("front 3", *TWO[1:])
        nine = tuple(f"big {n}" for n in range(10))
        assert reason(lambda: store.create(offer_of("front 4", *nine))) is Reason.LIMIT_EXCEEDED
        for front in ("front 5", "front 6"):
            begun_of(store, front, *TWO[1:])
        assert reason(lambda: begun_of(store, "front 7", *TWO[1:])) is Reason.LIMIT_EXCEEDED, "two reserved 40 KB"


def test_a_commit_that_fails_is_tried_again(setup: Setup) -> None:
    store = setup.open()
    with acting_as(ALICE):
        stored_of(store, *ONE)
        for number, (down, up) in enumerate(setup.outages):
            tags = (f"front {number}x", *TWO[1:])
            upload = begun_of(store, *tags)
            send(store, upload, *tags)
            ready = store.complete(upload.upload_id)
            down()
            try:
                assert reason(lambda ready=ready: store.commit(ready)) is Reason.STORE_UNAVAILABLE  # type: ignore[misc]
            finally:
                up()
            while store.problems():
                pass
            keys = store.commit(store.complete(upload.upload_id))
            assert store.find(keys.key_set_id).path.read_bytes() == file_of(*tags)


def test_two_commits_at_once_make_one_set(embedded: Setup) -> None:
    store = embedded.open()

    def commit(upload_id: str) -> KeySetInfo | Reason:
        with acting_as(ALICE):
            try:
                return store.commit(store.complete(upload_id))
            except SecateurError as error:
                return error.reason

    with acting_as(ALICE):
        stored_of(store, *ONE)
    with ThreadPoolExecutor(4) as pool:
        for number in range(5):
            tags = (f"front {number}y", *TWO[1:])
            with acting_as(ALICE):
                upload = begun_of(store, *tags)
                send(store, upload, *tags)
            results = list(pool.map(commit, [upload.upload_id] * 4))
            (made,) = [found for found in results if isinstance(found, KeySetInfo)]
            assert set(results) - {made} <= {Reason.UPLOAD_UNKNOWN}
            with acting_as(ALICE):
                assert store.find(made.key_set_id).path.read_bytes() == file_of(*tags)
