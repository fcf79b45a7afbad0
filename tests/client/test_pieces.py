"""Keys that the server has are neither made nor sent again, and a client that is mistaken about them only sends more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from echo_server import EchoServer

from client import Client, ServerError, ServerUntrusted, calls
from client import upload as upload_module
from client.record_index import RECORDS, RecordIndex
from he_runtime.backends.tenseal_secret import SecretKey
from he_runtime.client_spec import ClientSpec
from he_runtime.errors import Reason
from he_runtime.ring import KeyRequest, KeySetSpec
from he_runtime.wire import WrittenRecord, key_byte_size, key_set_byte_size, read_key_set
from protos.native import MissingPieces, UploadInfo

NEW = (KeyRequest(27, 1), KeyRequest(9, 1))  # another element, and one at another level


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_module, "_BACKOFF_SECONDS", 0.001)


@pytest.fixture
def grown(spec: ClientSpec) -> ClientSpec:
    """The next version of the model: one key of three at another level, and a fourth."""
    return replace(spec, version="2", keys=KeySetSpec((*spec.keys.requests[:2], *NEW)))


@pytest.fixture
def served(echo_server: EchoServer, grown: ClientSpec) -> Iterator[EchoServer]:
    """A real key store and workers that echo, with both versions."""
    directory = echo_server.root / "models" / "echo" / "2"
    directory.mkdir()
    (directory / "spec.json").write_bytes(grown.to_json())
    (directory / "model.json").write_text(json.dumps({"control": str(echo_server.control)}))
    echo_server.start()
    yield echo_server


@pytest.fixture
def connect(served: EchoServer, tmp_path: Path) -> Callable[[], Client]:
    return lambda: Client.connect(served.address, home=tmp_path / "home", timeout=30.0)


def front_and(spec: ClientSpec, requests: Any) -> int:
    """The bytes of a set's front and of some of its keys."""
    every = sum(key_byte_size(r.level, spec.params, True) for r in spec.keys.requests)
    some = sum(key_byte_size(r.level, spec.params, True) for r in requests)
    return key_set_byte_size(spec.keys, spec.params, True) - every + some


def stored_sets(served: EchoServer, spec: ClientSpec) -> list[list[Any]]:
    files = [p for p in (served.root / "state" / "keys" / "blobs").rglob("*") if p.is_file()]
    found = [list(read_key_set(path, spec.params)) for path in sorted(files, key=lambda p: p.stat().st_mtime)]
    return [sorted(records, key=lambda r: r.element) for records in found]


def deletion_of(key_set_id: str) -> Any:
    return calls.delete_key_set(key_set_id)


def index_file(tmp_path: Path) -> Path:
    (path,) = tmp_path.rglob(RECORDS)
    return path


def test_the_next_version_sends_only_what_is_new(
    served: EchoServer, connect: Callable[[], Client], spec: ClientSpec, grown: ClientSpec, monkeypatch: Any
) -> None:
    made: list[int] = []
    make = SecretKey.make_keys
    monkeypatch.setattr(SecretKey, "make_keys", lambda s, k: (made.append(len(k.requests)), make(s, k))[1])
    seen: list[tuple[int, int]] = []
    with connect() as client:
        first = client.prepare("echo", version="1")
        second = client.prepare("echo", version="2", progress=lambda *at: seen.append(at))
    assert first.uploaded_bytes == first.key_bytes == key_set_byte_size(spec.keys, spec.params, True)
    assert second.key_bytes == key_set_byte_size(grown.keys, spec.params, True)
    assert second.uploaded_bytes == front_and(grown, NEW) < second.key_bytes and made == [3, 2]
    assert seen[0] == (0, second.uploaded_bytes) and seen[-1] == (second.uploaded_bytes,) * 2
    older, newer = stored_sets(served, spec)
    assert [(r.element, r.level) for r in newer] == [(0, 1), (3, 1), (9, 1), (27, 1)]
    assert [str(r.digits) for r in older[:2]] == [str(r.digits) for r in newer[:2]]


def test_an_upload_of_new_keys_is_resumed_by_the_next_client(
    connect: Callable[[], Client], grown: ClientSpec, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(upload_module, "_SEGMENT_BYTES", 64 << 10)
    with connect() as client:
        client.prepare("echo", version="1")
        send, left = client._transport.upload_chunks, [2]

        def breaks(requests: Any) -> int:
            left[0] -= 1
            if left[0] < 0:
                raise ServerError("cannot upload: cut", Reason.SERVER_UNREACHABLE)
            return send(requests)

        client._transport.upload_chunks = breaks  # type: ignore[method-assign]
        with pytest.raises(ServerError, match="cut"):
            client.prepare("echo", version="2")
    (note,) = tmp_path.rglob("pending.json")
    upload_id = json.loads(note.read_text())["upload_id"]
    with connect() as client:
        found = client._transport.get_upload(upload_id)
        assert found.committed_offset == 128 << 10 and found.missing == (0, 3, 4)
        assert client.prepare("echo", version="2").uploaded_bytes == front_and(grown, NEW)
    assert not list(tmp_path.rglob("pending.*"))


@pytest.mark.parametrize("damage", ["lost", "junk", "list", "sizes", "strange", "wrong sha256", "wrong digest"])
def test_a_mistaken_index_only_costs_the_upload(
    served: EchoServer,
    connect: Callable[[], Client],
    spec: ClientSpec,
    grown: ClientSpec,
    tmp_path: Path,
    damage: str,
) -> None:
    with connect() as client:
        client.prepare("echo", version="1")
    file = index_file(tmp_path)
    records = json.loads(file.read_text())
    if damage == "lost":
        file.unlink()
    elif damage in ("junk", "list"):
        file.write_text("{" if damage == "junk" else "[1]")
    else:
        changes: dict[str, Callable[[list[Any]], list[Any]]] = {
            "sizes": lambda r: [*r[:2], r[2] - 1, *r[3:]],
            "strange": lambda r: [r[0], None, *r[2:]],
            "wrong sha256": lambda r: [*r[:4], "0" * 64],
            "wrong digest": lambda r: [*r[:3], "0" * 64, r[4]],
        }
        file.write_text(json.dumps({name: changes[damage](record) for name, record in records.items()}))
    with connect() as client:
        ready = client.prepare("echo", version="2")
    if damage == "wrong digest":
        return  # these workers do not look into keys; real ones refuse, and then all are sent
    assert ready.uploaded_bytes == ready.key_bytes
    assert [(r.element, r.level) for r in stored_sets(served, spec)[-1]] == [(0, 1), (3, 1), (9, 1), (27, 1)]


def test_what_the_server_lost_is_made_again(
    served: EchoServer, connect: Callable[[], Client], grown: ClientSpec, tmp_path: Path
) -> None:
    with connect() as client:
        client._transport.ask(deletion_of(client.prepare("echo", version="1").key_set_id))
        second = client.prepare("echo", version="2")
        assert second.uploaded_bytes == second.key_bytes
    assert len(json.loads(index_file(tmp_path).read_text())) == 5


def test_pieces_deleted_while_the_rest_is_sent_are_made_again(
    served: EchoServer, connect: Callable[[], Client], spec: ClientSpec
) -> None:
    with connect() as client:
        first = client.prepare("echo", version="1")
        commit, ids = client._transport.commit_upload, [first.key_set_id]

        def late(upload_id: str) -> Any:
            if ids:
                client._transport.ask(deletion_of(ids.pop()))
            return commit(upload_id)

        client._transport.commit_upload = late  # type: ignore[method-assign]
        second = client.prepare("echo", version="2")
        assert second.uploaded_bytes == second.key_bytes
    (records,) = stored_sets(served, spec)
    assert len(records) == 4


def test_a_refusal_of_keys_that_were_not_sent_makes_it_send_all_once(
    served: EchoServer, connect: Callable[[], Client]
) -> None:
    with connect() as client:
        client.prepare("echo", version="1")
        commit, refused = client._transport.commit_upload, []

        def refuse(upload_id: str) -> Any:
            refused.append(upload_id)
            if len(refused) == 1:
                raise ServerError("cannot use the keys", Reason.KEY_MISSING)
            return commit(upload_id)

        client._transport.commit_upload = refuse  # type: ignore[method-assign]
        second = client.prepare("echo", version="2")
        assert second.uploaded_bytes == second.key_bytes and len(refused) == 2


def test_a_new_secret_forgets_what_was_sent_of_the_old_one(
    connect: Callable[[], Client], grown: ClientSpec, tmp_path: Path
) -> None:
    with connect() as client:
        client.prepare("echo", version="1")
    (secret,) = tmp_path.rglob("secret.key")
    secret.unlink()
    with connect() as client:
        second = client.prepare("echo", version="2")
        assert second.uploaded_bytes == second.key_bytes


def test_a_server_without_manifests_gets_the_whole(client: Client, server: Any, tmp_path: Path) -> None:
    ready = client.prepare("echo")
    assert ready.uploaded_bytes == ready.key_bytes and not list(tmp_path.rglob(RECORDS))
    assert not next(iter(server.key_sets.values())).total_bytes - ready.key_bytes


@pytest.mark.parametrize(
    "answer",
    [
        MissingPieces(()),
        MissingPieces((1,)),
        MissingPieces((99,)),
        UploadInfo("id", 1, 0, ()),
        UploadInfo("id", 1, 0, (0,)),
        UploadInfo("id", 10**6, 0, (4,)),
        UploadInfo("id", 10**6, 0, (1, 0, 2, 3)),
        UploadInfo("id", 10**6, 0, (0, 0, 1, 2, 3)),
        UploadInfo("id", 2**63, 0, (0, 1, 2, 3)),
    ],
)
def test_impossible_requests_for_pieces_are_refused(client: Client, server: Any, monkeypatch: Any, answer: Any) -> None:
    server.info = replace(server.info, max_upload_pieces=100)
    with Client.connect(server.address, home=client.keystore.home) as other:
        monkeypatch.setattr(other._transport, "create_upload", lambda offer: answer)
        with pytest.raises(ServerUntrusted, match="cannot upload the keys"):
            other.prepare("echo")


def test_an_index_is_of_exact_keys(tmp_path: Path, spec: ClientSpec) -> None:
    index, length = RecordIndex(tmp_path), key_byte_size(1, spec.params, True)
    record = WrittenRecord(3, 1, length, b"\x01" * 32, "ab" * 32)
    index.add("seal", [record])
    assert index.known(KeySetSpec((KeyRequest(3, 1), KeyRequest(0, 1))), spec.params) == {KeyRequest(3, 1): record}
    assert index.known(KeySetSpec((KeyRequest(3, 0), KeyRequest(9, 1))), spec.params) == {}
    assert index.known(KeySetSpec((KeyRequest(3, 1),), "hybrid-1"), spec.params) == {}
    index.forget("seal", [record])
    assert index.known(KeySetSpec((KeyRequest(3, 1),)), spec.params) == {}
    assert (tmp_path / RECORDS).stat().st_mode & 0o777 == 0o600
