"""Run by test_crash.py in a process of its own, which loads no gRPC and may therefore fork.

For each named step a child does one upload in <root>/<step>/ and dies of SIGKILL there.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path

from protos.native import UploadInfo, UploadOffer
from server.config import KeysConfig
from server.keys.store import KeyStore

PARAMS = "11" * 32
KEYS = b"KEYS" + bytes(range(256)) * 400
SHA256 = hashlib.sha256(KEYS).hexdigest()
OFFER = UploadOffer(PARAMS, "spec", len(KEYS), SHA256)


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


def main(root: str, *steps: str) -> None:
    for step in steps:
        child = os.fork()
        if child == 0:
            upload_and_die(Path(root) / step, step)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{step} was not reached"


if __name__ == "__main__":
    main(*sys.argv[1:])
