"""Run by test_crash.py in a process of its own, which loads no gRPC and may therefore fork.

For each named step a child does one upload in <root>/<step>/ and dies of SIGKILL there. Where the name begins with
"pieces-", the upload is one that takes pieces from a set that is stored.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path

from pieces import begun_of, part, stored_of

from protos.native import UploadInfo, UploadOffer
from server.config import KeysConfig
from server.keys.store import KeyStore

PARAMS = "11" * 32
KEYS = b"KEYS" + bytes(range(256)) * 400
SHA256 = hashlib.sha256(KEYS).hexdigest()
OFFER = UploadOffer(PARAMS, "spec", len(KEYS), SHA256)
STORED = ("front 1", "a", "b", "c")
NEXT = ("front 2", "a", "new", "c")


def upload_and_die(directory: Path, die_at: str) -> None:
    def on_step(step: str) -> None:
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    store = KeyStore(directory, KeysConfig(), on_step)
    upload = store.create(OFFER)
    assert isinstance(upload, UploadInfo)
    (directory / "upload_id").write_text(upload.upload_id)
    for at in range(0, len(KEYS), 30_000):
        store.append(upload.upload_id, at, KEYS[at : at + 30_000])
        store.progress(upload.upload_id)
    keys = store.commit(store.complete(upload.upload_id))
    store.delete(keys.key_set_id)


def upload_pieces_and_die(directory: Path, die_at: str) -> None:
    armed = False

    def on_step(step: str) -> None:
        if armed and step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    store = KeyStore(directory, KeysConfig(), on_step)
    first, _ = stored_of(store, *STORED)
    (directory / "stored_id").write_text(first.key_set_id)
    armed = True
    upload = begun_of(store, *NEXT)
    (directory / "upload_id").write_text(upload.upload_id)
    at = 0
    for data in (part("front 2"), part("new")):
        store.append(upload.upload_id, at, data)
        at = store.progress(upload.upload_id).committed_offset
    store.commit(store.complete(upload.upload_id))


def main(root: str, *steps: str) -> None:
    for step in steps:
        child = os.fork()
        if child == 0:
            pieces = step.startswith("pieces-")
            (upload_pieces_and_die if pieces else upload_and_die)(Path(root) / step, step.removeprefix("pieces-"))
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{step} was not reached"


if __name__ == "__main__":
    main(*sys.argv[1:])
