"""Uploads: resumed from what the server committed, whatever broke, and never believed blindly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import Client, ServerError, ServerUntrusted
from client import upload as upload_module
from he_runtime.client_spec import ClientSpec
from he_runtime.errors import Reason
from he_runtime.ring import KeySetSpec
from he_runtime.wire import key_set_byte_size, read_key_set
from protos.native import UploadInfo
from protos.status import Failure

CHUNK = 32 << 10


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_module, "_BACKOFF_SECONDS", 0.001)


def _stored(server: Any) -> bytes:
    (data,) = server.stored.values()
    return bytes(data)


def test_the_upload_is_exactly_the_key_set_that_the_spec_names(
    client: Client, server: Any, spec: ClientSpec, tmp_path: Path
) -> None:
    client.prepare("echo")
    file = tmp_path / "received"
    file.write_bytes(_stored(server))
    records = list(read_key_set(file, spec.params))
    assert [(r.element, r.level) for r in records] == [(r.element, r.level) for r in spec.keys.requests]
    assert len(_stored(server)) == key_set_byte_size(spec.keys, spec.params, seeded=True)
    (info,) = server.key_sets.values()
    assert (info.params_digest, info.client_spec_digest) == (spec.params.digest, spec.digest)


def test_progress_counts_bytes_up_to_the_total(client: Client, server: Any) -> None:
    seen: list[tuple[int, int]] = []
    client.prepare("echo", progress=lambda done, total: seen.append((done, total)))
    total = len(_stored(server))
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) == -(-total // CHUNK) + 1


def test_a_cut_connection_resumes_where_the_server_stands(client: Client, server: Any, sample: np.ndarray) -> None:
    server.cut_at = [3 * CHUNK, 5 * CHUNK]
    assert client.predict("echo", sample).index == 5
    assert (server.calls.count("CreateUpload"), server.calls.count("GetUpload")) == (1, 2)
    assert server.chunk_offsets == sorted(set(server.chunk_offsets)), "no chunk was sent twice"


def test_a_server_restart_in_the_middle_is_survived(client: Client, server: Any, sample: np.ndarray) -> None:
    server.restart_at = 3 * CHUNK
    assert client.predict("echo", sample).index == 5
    assert server.restart_at is None
    assert server.calls.count("UploadChunks") == 2


def test_segments_are_committed_one_by_one(client: Client, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_module, "_SEGMENT_BYTES", 2 * CHUNK)
    client.prepare("echo")
    assert server.calls.count("UploadChunks") == -(-len(_stored(server)) // (2 * CHUNK))


def test_an_upload_cut_for_good_is_resumed_by_the_next_client(server: Any, sample: np.ndarray, tmp_path: Path) -> None:
    server.stuck_at = 2 * CHUNK
    with Client.connect(server.address, home=tmp_path) as first, pytest.raises(ServerError) as caught:
        first.prepare("echo")
    assert caught.value.reason is Reason.SERVER_UNREACHABLE
    assert list(tmp_path.rglob("pending.keys")), "the spool waits for the next attempt"
    server.stuck_at = None
    with Client.connect(server.address, home=tmp_path) as second:
        assert second.predict("echo", sample).index == 5
    assert len(server.stored) == 1, "the same upload went on"
    assert not list(tmp_path.rglob("pending.*"))


def test_a_damaged_spool_is_made_again(server: Any, sample: np.ndarray, tmp_path: Path) -> None:
    server.stuck_at = 2 * CHUNK
    with Client.connect(server.address, home=tmp_path) as first, pytest.raises(ServerError):
        first.prepare("echo")
    (spool,) = tmp_path.rglob("pending.keys")
    spool.write_bytes(spool.read_bytes()[:-1])
    server.stuck_at = None
    with Client.connect(server.address, home=tmp_path) as second:
        assert second.predict("echo", sample).index == 5
    assert len(server.stored) == 2


def test_a_spool_for_another_key_list_is_not_sent(
    server: Any, spec: ClientSpec, sample: np.ndarray, tmp_path: Path, changed: Any
) -> None:
    server.stuck_at = 2 * CHUNK
    with Client.connect(server.address, home=tmp_path) as first, pytest.raises(ServerError):
        first.prepare("echo")
    server.stuck_at = None
    server.specs["echo"] = changed(keys=KeySetSpec(spec.keys.requests[:1]))
    with Client.connect(server.address, home=tmp_path) as second:
        assert second.predict("echo", sample).index == 5
        (info,) = server.key_sets.values()
        assert info.total_bytes == second.prepare("echo").key_bytes


def test_a_lost_commit_reply_finds_the_key_set(client: Client, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = client._transport.commit_upload

    def lose_once(upload_id: str) -> Any:
        commit(upload_id)
        monkeypatch.setattr(client._transport, "commit_upload", commit)
        raise ServerError("cannot commit: connection reset", Reason.SERVER_UNREACHABLE)

    monkeypatch.setattr(client._transport, "commit_upload", lose_once)
    ready = client.prepare("echo")
    assert ready.key_set_id in server.key_sets
    assert server.calls.count("CommitUpload") == 1


def test_an_upload_that_the_server_forgot_begins_again(client: Client, server: Any, sample: np.ndarray) -> None:
    server.cut_at = [3 * CHUNK]
    locate = client._transport.get_upload

    def forgotten(upload_id: str) -> UploadInfo:
        server.offers.clear()
        return locate(upload_id)

    client._transport.get_upload = forgotten  # type: ignore[method-assign]
    assert client.predict("echo", sample).index == 5
    assert server.calls.count("CreateUpload") == 2
    assert len(server.stored) == 2


def test_bytes_damaged_on_the_way_are_sent_again(client: Client, server: Any, sample: np.ndarray) -> None:
    server.commit_failures = [Failure("DIGEST_MISMATCH", "the bytes are not those announced")]
    assert client.predict("echo", sample).index == 5
    first, second = server.stored.values()
    assert first == second


def test_refused_keys_are_not_offered_again(client: Client, server: Any, sample: np.ndarray, tmp_path: Path) -> None:
    server.commit_failures = [Failure("RESIDUE_OUT_OF_RANGE", "bad key")]
    with pytest.raises(ServerError, match="bad key"):
        client.predict("echo", sample)
    assert not list(tmp_path.rglob("pending.*"))
    assert client.predict("echo", sample).index == 5
    first, second = server.stored.values()
    assert first != second, "the same secret made new keys"


def test_a_refusal_is_not_retried(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def refuse(offer: Any) -> Any:
        tries.append(1)
        raise ServerError("cannot offer the keys: quota", Reason.LIMIT_EXCEEDED)

    monkeypatch.setattr(client._transport, "create_upload", refuse)
    with pytest.raises(ServerError, match="quota"):
        client.prepare("echo")
    assert tries == [1]


@pytest.mark.parametrize("offset", [-1, 1 << 40])
def test_an_impossible_offset_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    monkeypatch.setattr(client._transport, "create_upload", lambda offer: UploadInfo("id", offer.total_bytes, offset))
    with pytest.raises(ServerUntrusted, match="offset"):
        client.prepare("echo")


def test_a_server_that_commits_nothing_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client._transport, "upload_chunks", lambda requests: 0)
    with pytest.raises(ServerUntrusted, match="committed offset 0"):
        client.prepare("echo")


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "0" * 64},
        {"params_digest": "0" * 64},
        {"total_bytes": 1},
        {"key_set_id": ""},
        {"key_set_id": "x" * 300},
        {"key_set_id": "a\nb"},
    ],
)
def test_a_key_set_that_was_not_sent_is_refused(
    client: Client, server: Any, change: dict[str, Any], tmp_path: Path
) -> None:
    server.bend_key_set = lambda info: replace(info, **change)
    with pytest.raises(ServerUntrusted, match="another key set"):
        client.prepare("echo")
    assert not list((tmp_path / "home").rglob("key_sets.json"))


@pytest.mark.parametrize(("stated", "used"), [(0, 1 << 18), (1, 1 << 10), (CHUNK, CHUNK), (1 << 40, 1 << 18)])
def test_chunk_sizes_are_bounded_on_both_sides(stated: int, used: int) -> None:
    assert upload_module.chunk_size(stated) == used
