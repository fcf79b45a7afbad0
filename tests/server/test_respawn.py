"""A lost worker is replaced, whatever is in the way, and takes its models up again before it takes requests."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from harness import KEYS, failure, make_config

from server.engine import pool


def test_a_worker_that_cannot_be_started_is_tried_again(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, caller = serve()
    keys = caller.upload(KEYS).key_set_id
    made, original = [], pool.WorkerProcess

    def starved(*arguments: Any) -> Any:
        made.append(1)
        if len(made) < 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return original(*arguments)

    monkeypatch.setattr(pool, "WorkerProcess", starved)
    assert failure(lambda: caller.infer(keys, b"die:")).reason == "WORKER_LOST"
    assert caller.infer(keys, b"echo:x", timeout=20).ciphertexts
    assert len(made) == 3


def test_a_large_model_is_loaded_again_before_requests_are_taken(serve: Any, tmp_path: Path) -> None:
    """Callers of little patience must not have the new worker killed while it loads on their time."""
    make_config(tmp_path)
    path = tmp_path / "models" / "digits" / "10" / "model.json"
    path.write_text(path.read_text().replace("}", ', "build_seconds": 1.5}'))
    server, caller = serve(engine={"cancel_grace_seconds": 0.2})
    keys, (first,) = caller.upload(KEYS).key_set_id, server.worker_pids()
    assert failure(lambda: caller.infer(keys, b"die:")).reason == "WORKER_LOST"
    seen, end = {first}, time.monotonic() + 3.0
    while time.monotonic() < end:
        seen.update(server.worker_pids())
        try:
            caller.infer(keys, b"echo:x", timeout=0.1)
        except Exception:
            continue
        break
    assert caller.infer(keys, b"echo:x", timeout=20).ciphertexts
    assert len(seen | set(server.worker_pids())) == 2, "one replacement, and no more"


def test_a_server_stops_while_a_worker_is_being_replaced(serve: Any, tmp_path: Path) -> None:
    server, caller = serve()
    keys = caller.upload(KEYS).key_set_id
    path = tmp_path / "models" / "digits" / "10" / "model.json"
    path.write_text(path.read_text().replace("}", ', "build_seconds": 30}'))
    assert failure(lambda: caller.infer(keys, b"die:")).reason == "WORKER_LOST"
    time.sleep(1.0)
    started = time.monotonic()
    server.stop()
    assert time.monotonic() - started < 5.0
