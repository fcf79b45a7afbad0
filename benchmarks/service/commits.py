"""kill -9 of the server at every step of an upload's commit: no torn key set, an intact database, no orphans.

    python -m benchmarks.service.commits [--count 50]

In each round a server process kills itself at one durable step, the steps in turn, while a key set is sent to it, whole or in
pieces of which it has most; the next server on the same directory lets the project's own uploader finish. Between the two the directory is looked at as a stranger
would: the database checks itself, and every set that an id leads to has the bytes of its digest. Prints one JSON object
and exits with 1 where anything is torn or left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from client.errors import ServerError
from client.spool import Spool
from client.transport import Transport
from client.upload import Uploader
from he_runtime.wire import WrittenRecord
from protos.manifest import Piece
from protos.native import InferenceCall, UploadInfo

from .fakes import PARAMS, fake_server, spec_digest, write_config
from .uploads import FileSpool, make_spool

AnySpool: TypeAlias = FileSpool | Spool

__all__ = ["STEPS", "killed_commits", "main"]

_RECEIVING = ("part-made", "before-part-sync", "part-synced")
_STORING = ("before-move", "moved", "recorded")
_IN_PIECES = "pieces: "
STEPS = (*_RECEIVING, *_STORING, *(_IN_PIECES + s for s in (*_RECEIVING, "filled", "checked", "named", *_STORING)))
_KEY_BYTES = 300_000
_PIECES, _PIECE_BYTES = 10, 30_000


def killed_commits(directory: Path, count: int, steps: tuple[str, ...] = STEPS) -> dict[str, Any]:
    """`count` rounds; the figures, and what was found torn (nothing, one hopes)."""
    torn: list[str] = []
    killed: Counter[str] = Counter()
    finished = 0
    keys = directory / "state" / "keys"
    for number in range(count):
        step = steps[number % len(steps)]
        in_pieces = step.startswith(_IN_PIECES)
        spool = _pieces(directory, number) if in_pieces else make_spool(directory, _KEY_BYTES, number)
        killed[step] += _upload_into_death(directory, spool, step.removeprefix(_IN_PIECES))
        found = _look(keys)
        finished += _finish(directory, spool)
        found += _look(keys) + _left_behind(keys)
        torn += [f"round {number} at {step}: {what}" for what in found]
        spool.path.unlink()
        spool.drop()
    done = sum(killed.values()) == count and finished == count
    return {"rounds": count, "killed": dict(killed), "finished": finished, "torn": torn, "ok": done and not torn}


def _pieces(directory: Path, number: int) -> Spool:
    """A set whose front and first key only this round has; the server has the other keys from an earlier round."""
    chooser, own = random.Random("shared"), random.Random(number)
    parts = [b"KEYS" + own.randbytes(500), own.randbytes(_PIECE_BYTES)]
    parts += [chooser.randbytes(_PIECE_BYTES) for _ in range(_PIECES - 1)]
    path, data = directory / f"pieces{number}.keys", b"".join(parts)
    path.write_bytes(data)
    front, *records = (WrittenRecord(0, 0, len(part), b"", hashlib.sha256(part).hexdigest()) for part in parts)
    sha256 = hashlib.sha256(data).hexdigest()
    return Spool(path, "", sha256, len(data), Piece(front.sha256, front.length), tuple(records))


def _upload_into_death(directory: Path, spool: AnySpool, step: str) -> bool:
    """Send a key set to a server that kills itself at `step`; whether it did."""
    command = [sys.executable, "-m", "benchmarks.service.dying", str(write_config(directory)), step]
    path = os.pathsep.join(os.path.abspath(p) for p in sys.path)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        transport = Transport(grpc.insecure_channel(address), address, timeout_seconds=30.0)
        try:
            with contextlib.closing(transport), contextlib.suppress(ServerError):
                _send(transport, spool)
            process.wait(60)
        finally:
            process.kill()  # a survivor, which the figures must not wait for; after its own death this does nothing
    return process.returncode == -signal.SIGKILL


def _send(transport: Transport, spool: AnySpool) -> None:
    found = transport.create_upload(spool.offer(PARAMS, spec_digest()))
    assert isinstance(found, UploadInfo)
    stream = spool.stream(found.missing)
    assert stream is not None
    spool.remember_upload(found.upload_id)
    uploader = Uploader(transport, 64 << 10)
    transport.upload_chunks(lambda: uploader._chunks(stream, found.upload_id, 0, stream.total_bytes))
    transport.commit_upload(found.upload_id)
    raise AssertionError("the server survived")


def _finish(directory: Path, spool: AnySpool) -> bool:
    """Whether the next server takes the upload to its end, and evaluates with the very bytes that were sent."""
    with fake_server(directory) as server:
        transport = Transport(grpc.insecure_channel(server.address), server.address, timeout_seconds=30.0)
        with contextlib.closing(transport):
            keys = Uploader(transport, 64 << 10).upload(spool, PARAMS, spec_digest())  # type: ignore[arg-type]
            reply = transport.infer(InferenceCall("digits", "", "", keys.key_set_id, b"echo:x"))
    return reply.ciphertexts == spool.sha256.encode() + b"|x"


def _rows(keys: Path, statement: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(keys / "keys.sqlite3")) as connection:
        return list(connection.execute(statement))


def _look(keys: Path) -> list[str]:
    """What is torn: a database that is not whole, or an id that leads to other bytes than its digest's."""
    found = [str(row) for row in _rows(keys, "PRAGMA integrity_check") if row != ("ok",)]
    found += [str(row) for row in _rows(keys, "PRAGMA foreign_key_check")]
    for (sha256,) in _rows(keys, "SELECT DISTINCT sha256 FROM key_sets"):
        files = list((keys / "blobs").rglob(sha256))
        if [hashlib.sha256(file.read_bytes()).hexdigest() for file in files] != [sha256]:
            found.append(f"{sha256[:12]} is visible and not whole")
    return found


def _left_behind(keys: Path) -> list[str]:
    """Files that nothing records, once a server was up and everything is finished."""
    recorded = {sha256 for (sha256,) in _rows(keys, "SELECT sha256 FROM blobs")}
    blobs = [p.name for p in (keys / "blobs").rglob("*") if p.is_file()]
    return [f"{name[:12]} is an orphan" for name in blobs if name not in recorded] + [
        f"part {path.name[:12]} is left" for path in (keys / "parts").iterdir()
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=50, help="rounds")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="secateur-commits-") as place:
        report = killed_commits(Path(place), options.count)
    print(json.dumps(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
