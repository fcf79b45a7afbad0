"""The state directory: its version and migrations, and copies of it that a server serves from."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from admin_caller import ADMIN, administrator
from harness import KEYS, Caller, failure, make_config

from he_runtime.errors import Reason, SecateurError
from server.errors import ConfigError
from server.running import RunningServer, start
from server.state.backup import back_up, restore
from server.state.layout import VERSION_FILE, current_version, open_state, read_version

Serve = Callable[..., tuple[RunningServer, Caller]]


def test_a_new_state_has_this_builds_version(tmp_path: Path) -> None:
    state = tmp_path / "a" / "state"
    assert read_version(state) is None
    os.close(open_state(state))
    assert read_version(state) == current_version() and state.stat().st_mode & 0o777 == 0o700
    os.close(open_state(state))


def test_a_state_without_a_number_is_of_an_early_build(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    assert read_version(tmp_path) == 0
    os.close(open_state(tmp_path))
    assert read_version(tmp_path) == current_version()


def test_an_interrupted_migration_is_taken_up_where_it_stopped(tmp_path: Path) -> None:
    done = []

    def interrupted(state: Path) -> None:
        done.append("1, half")
        raise KeyboardInterrupt

    (tmp_path / "keys").mkdir()
    with pytest.raises(KeyboardInterrupt):
        open_state(tmp_path, {0: lambda state: done.append("0"), 1: interrupted})
    assert (tmp_path / VERSION_FILE).read_text() == "1\n"
    os.close(open_state(tmp_path, {0: lambda state: done.append("0"), 1: lambda state: done.append("1")}))
    assert done == ["0", "1, half", "1"] and (tmp_path / VERSION_FILE).read_text() == "2\n"


@pytest.mark.parametrize(("text", "named"), [("99", "layout version 99"), ("new", "holds 'new'"), ("-1", "holds '-1'")])
def test_a_state_of_another_build_is_refused_and_not_touched(tmp_path: Path, text: str, named: str) -> None:
    config = make_config(tmp_path)
    config.state.mkdir()
    (config.state / VERSION_FILE).write_text(text)
    with pytest.raises(ConfigError, match=named):
        start(config)
    assert {p.name for p in config.state.iterdir()} <= {VERSION_FILE, "lock"}


def test_two_servers_do_not_share_a_state(serve: Serve, tmp_path: Path) -> None:
    serve()
    with pytest.raises(ConfigError, match="another server uses it"):
        start(make_config(tmp_path))


def restored(tmp_path: Path, source: Path) -> RunningServer:
    restore(source, tmp_path / "elsewhere" / "state")
    return start(replace(make_config(tmp_path), state=tmp_path / "elsewhere" / "state"))


def test_a_backup_made_under_load_serves_the_same_keys(serve: Serve, tmp_path: Path) -> None:
    server, caller = serve(admin=ADMIN)
    with administrator(server.admin_address) as admin:
        admin.set_default("digits", "2")
    kept = [caller.upload(KEYS + bytes([k])).key_set_id for k in range(4)]
    waiting = caller.begin(b"KEYS of an upload under way")
    with ThreadPoolExecutor(1) as pool:  # while others come and go
        coming = pool.submit(lambda: [caller.upload(KEYS + bytes([k])).key_set_id for k in range(4, 40)])
        made = back_up(tmp_path / "state", tmp_path / "backup")
        coming.result()
    assert made.layout_version == current_version() and made.files > 4
    with restored(tmp_path, tmp_path / "backup") as second, grpc.insecure_channel(second.address) as channel:
        other = Caller(channel)
        assert [other.infer(k, b"echo:x").ciphertexts for k in kept] == [
            caller.infer(k, b"echo:x").ciphertexts for k in kept
        ]
        assert other.get_model().summary.default_version == "2"
        assert failure(lambda: other.offset(waiting)).reason == "UPLOAD_UNKNOWN"
        other.upload(b"KEYS that come later")
    assert caller.infer(kept[0], b"echo:x").ciphertexts, "the first server never noticed"


def test_a_backup_of_a_server_that_is_down(serve: Serve, tmp_path: Path) -> None:
    server, caller = serve()
    keys = caller.upload().key_set_id
    server.stop()
    back_up(tmp_path / "state", tmp_path / "backup")
    with restored(tmp_path, tmp_path / "backup") as second, grpc.insecure_channel(second.address) as channel:
        assert Caller(channel).infer(keys, b"echo:x").ciphertexts


def test_key_files_are_linked_and_databases_are_not(serve: Serve, tmp_path: Path) -> None:
    serve()[1].upload()
    back_up(tmp_path / "state", tmp_path / "backup")
    files = [p for p in (tmp_path / "backup").rglob("*") if p.is_file()]
    linked = {p.relative_to(tmp_path / "backup").parts[:2] for p in files if p.stat().st_nlink > 1}
    assert ("keys", "blobs") in linked and {place[0] for place in linked} == {"keys", "models"}
    assert (tmp_path / "backup" / "keys" / "keys.sqlite3").stat().st_nlink == 1
    with sqlite3.connect(tmp_path / "backup" / "keys" / "keys.sqlite3") as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def test_a_damaged_backup_is_refused_and_leaves_nothing(serve: Serve, tmp_path: Path) -> None:
    server, caller = serve()
    caller.upload()
    server.stop()
    backup, target = tmp_path / "backup", tmp_path / "elsewhere" / "state"
    back_up(tmp_path / "state", backup)
    index = json.loads((backup / "BACKUP.json").read_text())
    name = next(n for n in index["sha256"] if n.startswith("keys/blobs/"))

    def refused(reason: Reason, match: str) -> None:
        with pytest.raises(SecateurError, match=match) as caught:
            restore(backup, target)
        assert caught.value.reason is reason and not target.exists()

    original = (backup / name).read_bytes()
    (backup / name).unlink()  # a link: writing to it would damage the server's own file
    refused(Reason.DIGEST_MISMATCH, "is missing")
    (backup / name).write_bytes(original[:-1] + b"\x00")
    refused(Reason.DIGEST_MISMATCH, "is damaged")
    (backup / name).write_bytes(original)
    (backup / "BACKUP.json").write_text(json.dumps({**index, "sha256": {**index["sha256"], "../x": "00"}}))
    refused(Reason.INTERNAL, "another kind")
    (backup / "BACKUP.json").unlink()
    refused(Reason.INTERNAL, "no readable")


def test_what_is_there_is_not_overwritten(serve: Serve, tmp_path: Path) -> None:
    serve()[0].stop()
    back_up(tmp_path / "state", tmp_path / "backup")
    with pytest.raises(ConfigError, match="there already"):
        back_up(tmp_path / "state", tmp_path / "backup")
    with pytest.raises(ConfigError, match="not empty"):
        restore(tmp_path / "backup", tmp_path / "state")
    with pytest.raises(ConfigError, match="no state of a server"):
        back_up(tmp_path / "nothing", tmp_path / "other")
    assert not (tmp_path / "other").exists()
