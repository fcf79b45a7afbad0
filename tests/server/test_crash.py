"""kill -9 at every durable step: nothing half-committed, orphans swept, the upload resumed where it stood."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from crasher import KEYS, NEXT, OFFER, PARAMS, SHA256, STORED
from harness import Caller, failure, make_models, sha256
from pieces import file_of, offer_of, send, stored_of

from protos.native import KeySetInfo, UploadInfo
from server.config import KeysConfig
from server.errors import ConfigError
from server.identity.tenant import ANONYMOUS
from server.keys.blobs import blob_name
from server.keys.db import UploadRow
from server.keys.store import KeyStore
from server.running import RunningServer, start_subprocess

HERE = Path(__file__).parent
BLOB = f"blobs/{blob_name(ANONYMOUS.tenant, SHA256)}"
# The step, how many bytes must have survived, and whether the key set must be visible afterwards.
STEPS = [
    ("part-made", None, False),
    ("before-part-sync", 0, False),
    ("part-synced", 0, False),
    ("before-move", len(KEYS), False),
    ("moved", len(KEYS), False),
    ("recorded", None, True),
    ("deleted", None, False),
]
# The same of an upload that takes two of its four pieces from a stored set.
PIECES_STEPS = [
    ("part-made", None, False),
    ("before-part-sync", 0, False),
    ("part-synced", 0, False),
    ("filled", 10_000, False),
    ("checked", 10_000, False),
    ("named", 10_000, False),
    ("before-move", 10_000, False),
    ("moved", 10_000, False),
    ("recorded", None, True),
]


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory per step, each left behind by a process that was killed there."""
    root = tmp_path_factory.mktemp("crashed")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    command = [sys.executable, str(HERE / "crasher.py"), str(root), *(step for step, _, _ in STEPS)]
    command += [f"pieces-{step}" for step, _, _ in PIECES_STEPS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return root


def files(directory: Path) -> list[str]:
    found = [p for kind in ("blobs", "parts") for p in (directory / kind).rglob("*") if p.is_file()]
    return sorted(str(p.relative_to(directory)) for p in found)


@pytest.mark.parametrize(("step", "offset", "visible"), STEPS, ids=[s[0] for s in STEPS])
def test_kill_at_every_step(crashed: Path, step: str, offset: int | None, visible: bool) -> None:
    directory = crashed / step
    store = KeyStore(directory, KeysConfig())
    assert store.db.driver.read("PRAGMA integrity_check") == [("ok",)]
    blobs = [BLOB] if visible else []
    assert [f for f in files(directory) if f.startswith("blobs")] == blobs
    upload_id = (directory / "upload_id").read_text() if offset is not None else ""
    if offset is not None:
        assert store.progress(upload_id).committed_offset == offset
        (part,) = (directory / "parts").iterdir()
        assert part.stat().st_size == offset, "what was not recorded is cut off"
        store.append(upload_id, offset, KEYS[offset:])
        keys = store.commit(store.complete(upload_id))
    else:
        again = store.create(OFFER)
        assert isinstance(again, KeySetInfo) == visible
        if isinstance(again, UploadInfo):
            store.append(again.upload_id, 0, KEYS)
            again = store.commit(store.complete(again.upload_id))
        keys = again
    assert store.find(keys.key_set_id).path.read_bytes() == KEYS
    assert files(directory) == [BLOB], "no part is left"
    store.close()


@pytest.mark.parametrize(("step", "offset", "visible"), PIECES_STEPS, ids=[s[0] for s in PIECES_STEPS])
def test_kill_at_every_step_of_putting_pieces_together(
    crashed: Path, step: str, offset: int | None, visible: bool
) -> None:
    directory = crashed / f"pieces-{step}"
    store = KeyStore(directory, KeysConfig())
    assert store.db.driver.read("PRAGMA integrity_check") == [("ok",)]
    assert store.db.driver.read("PRAGMA foreign_key_check") == []
    both = sorted(f"blobs/{blob_name(ANONYMOUS.tenant, sha256(file_of(*tags)))}" for tags in (STORED, NEXT))
    assert len([f for f in files(directory) if f.startswith("blobs")]) == 1 + visible
    assert store.find((directory / "stored_id").read_text()).path.read_bytes() == file_of(*STORED)
    if offset is not None:
        upload = store.upload((directory / "upload_id").read_text())
        assert (upload.missing, upload.committed_offset) == ((0, 2), offset)
        send(store, upload, *NEXT)
        keys = store.commit(store.complete(upload.upload_id))
    else:
        assert isinstance(store.create(offer_of(*NEXT)), KeySetInfo) == visible
        for row in store.db.uploads():
            store._uploads.drop(row.id_hash)
        keys, sent = stored_of(store, *NEXT)
        assert sent == (0 if visible else 10_000)
    assert store.find(keys.key_set_id).path.read_bytes() == file_of(*NEXT)
    assert files(directory) == both, "no part is left"
    assert store.db.driver.read("SELECT count(*) FROM pieces") == [(8,)] and store.db.uploads() == []
    assert store.db.driver.read("SELECT count(*) FROM manifests") == [(0,)]
    store.close()


def test_strangers_in_the_directories_are_swept(tmp_path: Path) -> None:
    KeyStore(tmp_path, KeysConfig()).close()
    (tmp_path / "blobs" / "orphan").write_bytes(b"x")
    (tmp_path / "parts" / "orphan").write_bytes(b"x")
    KeyStore(tmp_path, KeysConfig()).close()
    assert files(tmp_path) == []


def test_a_part_shorter_than_recorded_is_dropped(tmp_path: Path) -> None:
    """What a power cut may leave on a disk that lies about syncing."""
    store = KeyStore(tmp_path, KeysConfig())
    store.db.add_upload(UploadRow("a" * 64, ANONYMOUS.tenant, "b" * 64, 100, PARAMS, "spec", "local", 50, 4e9))
    (tmp_path / "parts" / ("a" * 64)).write_bytes(b"x" * 49)
    store.close()
    store = KeyStore(tmp_path, KeysConfig())
    assert store.db.uploads() == [] and files(tmp_path) == []
    store.close()


def test_two_servers_do_not_share_a_directory(tmp_path: Path) -> None:
    store = KeyStore(tmp_path, KeysConfig())
    with pytest.raises(ConfigError, match="another server uses it"):
        KeyStore(tmp_path, KeysConfig())
    store.close()
    KeyStore(tmp_path, KeysConfig()).close()


def test_a_lost_blob_is_forgotten(tmp_path: Path) -> None:
    store = KeyStore(tmp_path, KeysConfig())
    upload = store.create(OFFER)
    assert isinstance(upload, UploadInfo)
    store.append(upload.upload_id, 0, KEYS)
    keys = store.commit(store.complete(upload.upload_id))
    path = store.find(keys.key_set_id).path
    store.close()
    path.unlink()
    store = KeyStore(tmp_path, KeysConfig())
    assert isinstance(store.create(OFFER), UploadInfo)
    store.close()


def test_ids_are_stored_hashed(tmp_path: Path) -> None:
    store = KeyStore(tmp_path, KeysConfig())
    upload = store.create(OFFER)
    assert isinstance(upload, UploadInfo)
    store.append(upload.upload_id, 0, KEYS)
    keys = store.commit(store.complete(upload.upload_id))
    store.close()
    content = b"".join(p.read_bytes() for p in tmp_path.glob("keys.sqlite3*"))
    assert hashlib.sha256(keys.key_set_id.encode()).hexdigest().encode() in content
    assert keys.key_set_id.encode() not in content and upload.upload_id.encode() not in content


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    make_models(tmp_path / "models")
    path = tmp_path / "server.toml"
    engine = 'backend = "fake"\nruntime = "fake_runtime"'
    path.write_text(
        f'address = "127.0.0.1:0"\nlog_level = "error"\nmodels = "models"\nstate = "state"\n[engine]\n{engine}\n'
    )
    return path


def test_a_killed_server_resumes_the_upload(config_file: Path) -> None:
    first = start_subprocess(config_file)
    with grpc.insecure_channel(first.address) as channel:
        caller = Caller(channel)
        upload_id = caller.begin(KEYS)
        assert caller.send(upload_id, KEYS[:50_000]) == 50_000
        _kill(first)
        assert failure(lambda: caller.offset(upload_id)).reason == "SERVER_UNREACHABLE"
    with start_subprocess(config_file) as second, grpc.insecure_channel(second.address) as channel:
        caller = Caller(channel)
        at = caller.offset(upload_id)
        assert at == 50_000
        caller.send(upload_id, KEYS[at:], at)
        assert caller.infer(caller.commit(upload_id).key_set_id, b"echo:x").ciphertexts.endswith(b"|x")
        assert second.process is not None
        second.process.send_signal(signal.SIGTERM)
        assert second.process.wait(20) == 0, "SIGTERM ends it gently"


def _kill(server: RunningServer) -> None:
    assert server.process is not None
    server.process.kill()
    server.stop()
