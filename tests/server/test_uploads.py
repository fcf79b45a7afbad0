"""Uploads over the network: resumed, refused and never half-committed."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from harness import KEYS, OTHER_PARAMS, PARAMS, Caller, failure, sha256, spec_digest

from protos.gen.secateur.v1 import keys_pb2
from server.running import RunningServer


def unique(tag: str, size: int = 50_000) -> bytes:
    return (b"KEYS" + tag.encode() * size)[:size]


def test_upload_commit_use_and_delete(caller: Caller) -> None:
    data = unique("whole")
    keys = caller.upload(data)
    assert (keys.sha256, keys.total_bytes, keys.params_digest) == (sha256(data), len(data), PARAMS)
    assert len(keys.key_set_id) == 32
    found = caller.keys.GetKeySet(keys_pb2.GetKeySetRequest(key_set_id=keys.key_set_id), timeout=5).key_set
    assert found.sha256 == sha256(data)
    caller.keys.DeleteKeySet(keys_pb2.DeleteKeySetRequest(key_set_id=keys.key_set_id), timeout=5)
    gone = failure(lambda: caller.infer(keys.key_set_id, b"echo:x"))
    assert (gone.reason, gone.code) == ("KEY_SET_UNKNOWN", grpc.StatusCode.NOT_FOUND)
    assert caller.offer(data).WhichOneof("result") == "upload", "the bytes went with the last id"


def test_stored_bytes_are_not_sent_again_and_ids_are_independent(caller: Caller) -> None:
    data = unique("twice")
    first, second = caller.upload(data), caller.offer(data)
    assert second.WhichOneof("result") == "key_set" and second.key_set.key_set_id != first.key_set_id
    caller.keys.DeleteKeySet(keys_pb2.DeleteKeySetRequest(key_set_id=first.key_set_id), timeout=5)
    assert caller.infer(second.key_set.key_set_id, b"echo:x").ciphertexts.endswith(b"|x")


def test_keys_that_a_worker_still_holds_are_of_no_use_once_deleted(serve: object) -> None:
    _, caller = serve()  # type: ignore[operator]
    keys = caller.upload(KEYS)
    assert caller.infer(keys.key_set_id, b"echo:x").counts["key_loads"] == 1
    caller.keys.DeleteKeySet(keys_pb2.DeleteKeySetRequest(key_set_id=keys.key_set_id), timeout=5)
    for _ in range(3):
        assert failure(lambda: caller.infer(keys.key_set_id, b"echo:x")).reason == "KEY_SET_UNKNOWN"
    again = caller.upload(KEYS)
    assert caller.infer(again.key_set_id, b"echo:x").ciphertexts == sha256(KEYS).encode() + b"|x"


def test_a_set_tells_its_times_and_is_touched(caller: Caller) -> None:
    keys = caller.upload(unique("status"))
    request = keys_pb2.TouchKeySetRequest(key_set_id=keys.key_set_id)
    touched = caller.keys.TouchKeySet(request, timeout=5).key_set
    assert touched.resident and touched.key_set_id == keys.key_set_id
    assert keys.created_unix_ms == touched.created_unix_ms <= touched.last_used_unix_ms < touched.expires_unix_ms
    assert keys.last_used_unix_ms < touched.last_used_unix_ms
    found = caller.keys.GetKeySet(keys_pb2.GetKeySetRequest(key_set_id=keys.key_set_id), timeout=5).key_set
    assert found == touched
    by_handle = keys_pb2.TouchKeySetRequest(handle=keys.handle)
    assert failure(lambda: caller.keys.TouchKeySet(by_handle, timeout=5)).reason == "KEY_SET_UNKNOWN"
    denied = failure(lambda: caller.keys.ListKeySets(keys_pb2.ListKeySetsRequest(), timeout=5))
    assert (denied.reason, denied.code) == ("PERMISSION_DENIED", grpc.StatusCode.PERMISSION_DENIED)


def test_an_interrupted_stream_is_resumed_where_it_broke(caller: Caller) -> None:
    data = unique("broken")
    upload_id = caller.begin(data)

    def breaks() -> Iterator[keys_pb2.UploadChunkRequest]:
        yield keys_pb2.UploadChunkRequest(upload_id=upload_id, offset=0, data=data[:20_000])
        yield keys_pb2.UploadChunkRequest(upload_id=upload_id, offset=20_000, data=data[20_000:30_000])
        raise ConnectionError("the cable")

    with pytest.raises(grpc.RpcError):
        caller.keys.UploadChunks(breaks(), timeout=5)
    early = failure(lambda: caller.commit(upload_id))
    assert early.reason == "UPLOAD_INCOMPLETE"
    at = caller.offset(upload_id)
    assert at in (0, 20_000, 30_000) and early.metadata["committed_offset"] == str(at)
    assert caller.send(upload_id, data[at:], at) == len(data)
    assert caller.commit(upload_id).sha256 == sha256(data)


def test_unary_chunks_do_the_same(caller: Caller) -> None:
    data = unique("unary")
    upload_id = caller.begin(data)
    for at in range(0, len(data), 30_000):
        chunk = keys_pb2.UploadChunkRequest(upload_id=upload_id, offset=at, data=data[at : at + 30_000])
        reply = caller.keys.UploadChunk(chunk, timeout=5)
    assert reply.committed_offset == len(data)
    assert caller.commit(upload_id).total_bytes == len(data)


@pytest.mark.parametrize("offset", [1, 9_999, 10_001, 2**63])
def test_a_wrong_offset_names_the_right_one(caller: Caller, offset: int) -> None:
    data = unique("offset")
    upload_id = caller.begin(data)
    caller.send(upload_id, data[:10_000])
    wrong = failure(lambda: caller.send(upload_id, b"x", offset))
    assert (wrong.reason, wrong.metadata["committed_offset"]) == ("UPLOAD_OFFSET_WRONG", "10000")
    assert caller.offset(upload_id) == 10_000


def test_wrong_sha256_is_data_loss_and_leaves_nothing(caller: Caller) -> None:
    data = unique("right")
    upload_id = caller.begin(data)
    caller.send(upload_id, data[:-1] + b"?")
    lost = failure(lambda: caller.commit(upload_id))
    assert (lost.reason, lost.code) == ("DIGEST_MISMATCH", grpc.StatusCode.DATA_LOSS)
    assert failure(lambda: caller.commit(upload_id)).reason == "UPLOAD_UNKNOWN"
    assert caller.offer(data).WhichOneof("result") == "upload"


def test_more_bytes_than_announced(caller: Caller) -> None:
    data = unique("longer")
    upload_id = caller.begin(data)
    over = failure(lambda: caller.send(upload_id, data + b"x", chunk=len(data) + 1))
    assert over.reason == "SIZE_MISMATCH" and caller.offset(upload_id) == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"total_bytes": 1 << 40}, "LIMIT_EXCEEDED"),
        ({"total_bytes": (1 << 24) + 1}, "LIMIT_EXCEEDED"),  # above what the model's key set can be
        ({"total_bytes": 0}, "BYTES_MALFORMED"),
        ({"sha256": "AB" * 32}, "BYTES_MALFORMED"),
        ({"sha256": "../../etc/passwd"}, "BYTES_MALFORMED"),
        ({"params_digest": OTHER_PARAMS}, "KEY_PARAMETERS_DIFFER"),
        ({"client_spec_digest": "00" * 32}, "MODEL_UNKNOWN"),
    ],
)
def test_an_offer_is_refused_before_a_byte_moves(caller: Caller, changes: dict[str, object], reason: str) -> None:
    assert failure(lambda: caller.offer(unique("refused"), **changes)).reason == reason


@pytest.mark.parametrize(
    ("content", "reason"), [(b"JUNKjunkjunk", "BYTES_MALFORMED"), (b"KEYS FEW ....", "KEY_MISSING")]
)
def test_bad_keys_are_refused_at_commit_and_forgotten(caller: Caller, content: bytes, reason: str) -> None:
    upload_id = caller.begin(content)
    caller.send(upload_id, content)
    assert failure(lambda: caller.commit(upload_id)).reason == reason
    assert failure(lambda: caller.offset(upload_id)).reason == "UPLOAD_UNKNOWN"


@pytest.mark.parametrize("upload_id", ["", "0" * 32, "../keys.sqlite3", "é" * 40])
def test_unknown_uploads_get_one_answer(caller: Caller, upload_id: str) -> None:
    answers = [
        failure(lambda: caller.offset(upload_id)),
        failure(lambda: caller.commit(upload_id)),
        failure(
            lambda: caller.keys.UploadChunk(keys_pb2.UploadChunkRequest(upload_id=upload_id, data=b"x"), timeout=5)
        ),
    ]
    assert {(a.reason, a.message) for a in answers} == {("UPLOAD_UNKNOWN", answers[0].message)}


def test_an_empty_stream(caller: Caller) -> None:
    assert failure(lambda: caller.keys.UploadChunks(iter(()), timeout=5)).reason == "BYTES_TRUNCATED"


def test_a_chunk_over_its_limit_and_a_message_over_the_limit(caller: Caller) -> None:
    data = unique("limits", 3 << 20)
    upload_id = caller.begin(data)
    over_chunk = failure(lambda: caller.send(upload_id, data, chunk=(1 << 18) + 1))
    assert over_chunk.reason == "LIMIT_EXCEEDED" and over_chunk.subject == "data"
    over_message = failure(lambda: caller.send(upload_id, data, chunk=2 << 20))
    assert over_message.reason == "LIMIT_EXCEEDED"
    assert caller.offset(upload_id) == 0
    assert caller.send(upload_id, data, chunk=1 << 18) == len(data)


def test_an_upload_survives_a_restart(serve: object) -> None:
    server, caller = serve()  # type: ignore[operator]
    upload_id = caller.begin(KEYS)
    assert caller.send(upload_id, KEYS[:40_000]) == 40_000
    server.stop()
    server, caller = serve()  # type: ignore[operator]
    assert caller.offset(upload_id) == 40_000
    caller.send(upload_id, KEYS[40_000:], 40_000)
    keys = caller.commit(upload_id)
    server.stop()
    _, caller = serve()  # type: ignore[operator]
    assert caller.infer(keys.key_set_id, b"echo:x").ciphertexts == sha256(KEYS).encode() + b"|x"


def test_uploads_under_way_are_bounded(serve: object) -> None:
    _, caller = serve(keys={"max_uploads": 2, "upload_idle_seconds": 60.0})  # type: ignore[operator]
    first, second = caller.begin(unique("a")), caller.begin(unique("b"))
    full = failure(lambda: caller.begin(unique("c")))
    assert full.reason == "LIMIT_EXCEEDED" and full.retry_after_seconds is not None
    assert caller.offset(first) == caller.offset(second) == 0


def test_a_set_over_the_budget_is_refused_and_old_sets_are_evicted(serve: object) -> None:
    limits = {"max_upload_bytes": 1 << 20}
    _, caller = serve(limits=limits, keys={"budget_bytes": 120_000})  # type: ignore[operator]
    assert failure(lambda: caller.begin(unique("big", 120_001))).reason == "LIMIT_EXCEEDED"
    sets = [caller.upload(unique(tag)) for tag in ("1", "2")]
    assert caller.infer(sets[0].key_set_id, b"echo:x").ciphertexts  # the second is now the older one
    third = caller.upload(unique("3"))
    assert failure(lambda: caller.infer(sets[1].key_set_id, b"echo:x")).reason == "KEY_SET_UNKNOWN"
    assert (
        caller.infer(sets[0].key_set_id, b"echo:x").ciphertexts
        and caller.infer(third.key_set_id, b"echo:x").ciphertexts
    )
    again = caller.upload(unique("2"))  # what a client does by itself when told KEY_SET_UNKNOWN
    assert caller.infer(again.key_set_id, b"echo:x").ciphertexts


def test_another_version_of_the_spec_may_name_the_same_bytes(caller: Caller) -> None:
    data = unique("versions")
    caller.upload(data, client_spec_digest=spec_digest("10"))
    reply = caller.offer(data, client_spec_digest=spec_digest("2"))
    assert reply.WhichOneof("result") == "key_set"
    refused = failure(
        lambda: caller.offer(data, client_spec_digest=spec_digest("1", "other"), params_digest=OTHER_PARAMS)
    )
    assert refused.reason == "KEY_PARAMETERS_DIFFER"


def test_the_server_still_serves(shared: tuple[RunningServer, Caller]) -> None:
    server, caller = shared
    assert len(server.worker_pids()) == 2
    assert caller.infer(caller.upload().key_set_id, b"echo:x").ciphertexts == sha256(KEYS).encode() + b"|x"
