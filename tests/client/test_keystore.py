"""Secrets on disk: private, one per (server, parameter set), never lost half-written, forgotten with their uploads."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import Client, KeyStore, KeyStoreError
from client._files import locked, write_atomic
from client.keystore import ServerIdentity, default_home, key_list_digest
from he_runtime.client_spec import ClientSpec
from he_runtime.params import CkksParams, find_primes
from he_runtime.ring import KeyRequest, KeySetSpec

SERVER = ServerIdentity("127.0.0.1:1")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_under_home_is_private(client: Client, sample: np.ndarray, tmp_path: Path) -> None:
    client.predict("echo", sample)
    home = tmp_path / "home"
    directories = [home, *(p for p in home.rglob("*") if p.is_dir())]
    files = [p for p in home.rglob("*") if p.is_file()]
    assert {_mode(p) for p in directories} == {0o700}
    assert {_mode(p) for p in files} == {0o600}
    assert sorted(p.name for p in files) == [
        "entry.json",
        "key_sets.json",
        "lock",
        "releases.json",
        "secret.key",
        "server.json",
    ]


def test_no_file_but_the_secret_itself_holds_the_secret(
    client: Client, sample: np.ndarray, server: Any, tmp_path: Path
) -> None:
    client.predict("echo", sample)
    (secret,) = (tmp_path / "home").rglob("secret.key")
    body = secret.read_bytes()
    piece = body[len(body) // 2 : len(body) // 2 + 64]
    others = [p.read_bytes() for p in (tmp_path / "home").rglob("*") if p.is_file() and p != secret]
    sent = [bytes(b) for b in server.stored.values()] + [r.ciphertexts for r in server.requests]
    assert not any(piece in data for data in (*others, *sent))


def test_two_servers_get_two_secrets(server: Any, second_server: Any, sample: np.ndarray, tmp_path: Path) -> None:
    for each in (server, second_server):
        with Client.connect(each.address, home=tmp_path) as client:
            client.predict("echo", sample)
    first, second = (p.read_bytes() for p in tmp_path.rglob("secret.key"))
    assert first != second
    assert [e.address for e in KeyStore(tmp_path).entries()] == sorted([server.address, second_server.address])


def test_one_address_under_two_certificates_is_two_servers(spec: ClientSpec, tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    plain = store.entry(SERVER, spec.params)
    pinned = store.entry(ServerIdentity(SERVER.address, "ab" * 32), spec.params)
    assert plain.path != pinned.path


def test_two_parameter_sets_are_two_entries(spec: ClientSpec, tmp_path: Path) -> None:
    primes = find_primes(4096, [36.0, 34.0])
    other = CkksParams(4096, (primes[0],), (primes[1],))
    store = KeyStore(tmp_path)
    assert store.entry(SERVER, spec.params).path != store.entry(SERVER, other).path


def test_a_secret_is_made_once_and_loaded_after(spec: ClientSpec, tmp_path: Path) -> None:
    entry = KeyStore(tmp_path).entry(SERVER, spec.params)
    slots = np.linspace(-1, 1, spec.params.slots)
    with entry.lock():
        made = entry.secret().encrypt(slots, 1, 2.0**25)
    again = KeyStore(tmp_path).entry(SERVER, spec.params)
    with again.lock():
        np.testing.assert_allclose(again.secret().decrypt(made), slots, atol=1e-3)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_secret_that_others_can_read_is_refused(spec: ClientSpec, tmp_path: Path, mode: int) -> None:
    entry = KeyStore(tmp_path).entry(SERVER, spec.params)
    entry.secret()
    (entry.path / "secret.key").chmod(mode)
    with pytest.raises(KeyStoreError, match="600"):
        entry.secret()


@pytest.mark.parametrize(("part", "mode", "need"), [("", 0o777, "755"), ("servers", 0o750, "700")])
def test_directories_open_to_others_are_refused(
    spec: ClientSpec, tmp_path: Path, part: str, mode: int, need: str
) -> None:
    directory = tmp_path / "open" / part
    directory.mkdir(parents=True)
    (tmp_path / "open").chmod(0o755)
    directory.chmod(mode)
    with pytest.raises(KeyStoreError, match=f"need {need}"):
        KeyStore(tmp_path / "open").entry(SERVER, spec.params)


def test_an_ordinary_directory_may_be_home(spec: ClientSpec, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir(mode=0o755)
    (tmp_path / "plain").chmod(0o755)
    entry = KeyStore(tmp_path / "plain").entry(SERVER, spec.params)
    assert {_mode(p) for p in (entry.path, *entry.path.parents[:2])} == {0o700}


def test_a_home_that_cannot_be_made_is_a_typed_error(spec: ClientSpec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyStoreError, match="SECATEUR_HOME"):
        KeyStore(tmp_path / "file" / "home").entry(SERVER, spec.params)


def test_a_damaged_secret_is_refused_and_not_replaced(spec: ClientSpec, tmp_path: Path) -> None:
    entry = KeyStore(tmp_path).entry(SERVER, spec.params)
    entry.secret()
    file = entry.path / "secret.key"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(KeyStoreError, match="try deleting the entry"):
        entry.secret()
    assert file.read_bytes() == data


def test_a_new_secret_forgets_the_uploads_of_the_old_one(spec: ClientSpec, tmp_path: Path) -> None:
    entry = KeyStore(tmp_path).entry(SERVER, spec.params)
    entry.secret()
    entry.remember(spec.keys, "an id")
    (entry.path / "pending.keys").write_bytes(b"old")
    (entry.path / "secret.key").unlink()
    entry.secret()
    assert entry.key_set_id(spec.keys) is None
    assert not (entry.path / "pending.keys").exists()


def test_key_sets_are_remembered_by_their_exact_list(spec: ClientSpec, tmp_path: Path) -> None:
    entry = KeyStore(tmp_path).entry(SERVER, spec.params)
    other = KeySetSpec((*spec.keys.requests[:-1], KeyRequest(9, 1)))
    entry.remember(spec.keys, "first")
    entry.remember(other, "second")
    assert (entry.key_set_id(spec.keys), entry.key_set_id(other)) == ("first", "second")
    entry.forget(spec.keys, "something newer")
    assert entry.key_set_id(spec.keys) == "first"
    entry.forget(spec.keys, "first")
    assert (entry.key_set_id(spec.keys), entry.key_set_id(other)) == (None, "second")
    assert key_list_digest(spec.params, spec.keys) != key_list_digest(spec.params, other)


def test_listing_and_deleting(spec: ClientSpec, tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    assert store.entries() == []
    entry = store.entry(SERVER, spec.params)
    assert store.entries() == [], "an entry without a secret is none"
    entry.secret()
    entry.remember(spec.keys, "an id")
    (info,) = store.entries()
    assert (info.address, info.params_digest, info.key_sets) == (SERVER.address, spec.params.digest, 1)
    assert info.params_name == spec.params.name
    assert abs(info.created - time.time()) < 60
    store.delete(info)
    assert store.entries() == []
    assert not entry.path.exists()
    with pytest.raises(KeyStoreError, match="not an entry"):
        store.delete(info)


def test_home_is_an_argument_or_the_environment_or_the_users_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECATEUR_HOME", str(tmp_path / "env"))
    assert KeyStore().home == tmp_path / "env"
    assert KeyStore(tmp_path / "arg").home == tmp_path / "arg"
    monkeypatch.delenv("SECATEUR_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_home().name == "secateur"


def test_a_damaged_note_is_a_typed_error(spec: ClientSpec, tmp_path: Path) -> None:
    entry = KeyStore(tmp_path).entry(SERVER, spec.params)
    for damage in (b"{", b"[1]"):
        (entry.path / "key_sets.json").write_bytes(damage)
        with pytest.raises(KeyStoreError, match="try deleting it"):
            entry.key_set_id(spec.keys)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "note", b"old")
    monkeypatch.setattr("client._files._replace_file", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(KeyStoreError, match="disk full; need space and permission"):
        write_atomic(tmp_path / "note", b"new")
    assert (tmp_path / "note").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["note"]


def test_the_lock_excludes_another_process(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from client._files import locked; from client import KeyStoreError\n"
        "try:\n    with locked(Path(sys.argv[1]), 0.2): print('got it')\n"
        "except KeyStoreError as error: print('refused:', error)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "lock")]

    def attempt() -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    with locked(tmp_path / "lock", 1.0):
        assert attempt().startswith("refused: cannot lock")
    assert attempt() == "got it\n"


def test_two_clients_at_once_make_one_secret_and_one_upload(server: Any, sample: np.ndarray, tmp_path: Path) -> None:
    """Two clients in two threads have two lock descriptors, so they exclude each other as two processes do."""
    answers: list[int | None] = []

    def work() -> None:
        with Client.connect(server.address, home=tmp_path) as client:
            index = client.predict("echo", sample).index
            assert index is None or isinstance(index, int)
            answers.append(index)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert answers == [5, 5]
    assert server.calls.count("CommitUpload") == 1


def test_a_full_disk_is_a_typed_error_and_leaves_no_part_of_a_key_set(
    client: Client, server: Any, sample: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("client.spool.KeySetWriter.write", full)
        with pytest.raises(KeyStoreError, match="No space left on device"):
            client.predict("echo", sample)
    assert not list(tmp_path.rglob("pending.*")) and "CreateUpload" not in server.calls
    assert client.predict("echo", sample).index == 5
