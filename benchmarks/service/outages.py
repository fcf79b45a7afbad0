"""Database and object store away for a while under a running server: not ready, no crash, back in time, nothing lost.

    python -m benchmarks.service.outages [--seconds 30]

Needs PostgreSQL's programs, psycopg, obstore and moto: the two servers are the tests' own and are stopped and started in
turn. Each outage lasts `--seconds`, during which requests and an upload go on trying. Prints one JSON object and exits with 1
where something was lost or late.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.errors import ServerError
from client.transport import Transport
from client.upload import Uploader
from protos.native import InferenceCall

from .fakes import PARAMS, fake_server, spec_digest, tests_module
from .uploads import FileSpool, make_spool

__all__ = ["main", "outages"]

_READY_SECONDS = 10.0
_NOTICED_SECONDS = 10.0
_READINESS = "readiness"


def outages(directory: Path, seconds: float) -> dict[str, Any]:
    """One outage of each store, one after the other."""
    stores = tests_module("stores")
    binaries = stores.postgres_binaries()
    if binaries is None:
        raise SystemExit("cannot measure outages: found no PostgreSQL; try apt-get install postgresql")
    with ExitStack() as stack:
        stack.enter_context(stores.s3_credentials())
        database, bucket = stores.PrivatePostgres(binaries), stores.PrivateS3()
        stack.callback(bucket.stop)
        stack.callback(database.close)
        keys = {
            "database": database.new_database(),
            "bucket": bucket.new_bucket(),
            "bucket_endpoint": bucket.endpoint,
        }
        server = stack.enter_context(fake_server(directory, {"keys": keys}))
        transport = Transport(grpc.insecure_channel(server.address), server.address, timeout_seconds=60.0)
        stack.callback(transport.close)
        stub = stack.enter_context(_health(server.address))
        report = {
            name: _one(directory, transport, stub, number, store, seconds)
            for number, (name, store) in enumerate({"database": database, "object store": bucket}.items())
        }
        assert server.process is not None
        alive = server.process.poll() is None
    return {**report, "alive": alive, "ok": alive and all(part["ok"] for part in report.values())}


@contextmanager
def _health(address: str) -> Iterator[health_pb2_grpc.HealthStub]:
    with grpc.insecure_channel(address) as channel:
        yield health_pb2_grpc.HealthStub(channel)


def _one(directory: Path, transport: Transport, stub: Any, number: int, store: Any, seconds: float) -> dict[str, Any]:
    """Keys stored before, keys uploaded across it, and requests all the while."""
    before, across = make_spool(directory, 200_000, 10 * number), make_spool(directory, 400_000, 10 * number + 1)
    known = _upload(transport, before)
    _until(stub, True, _READY_SECONDS)
    answers: Counter[str] = Counter()
    over = threading.Event()
    asking = threading.Thread(target=_ask, args=(transport, known, before.sha256, answers, over))
    store.stop()
    stopped = time.monotonic()
    asking.start()
    uploaded: list[str] = []
    uploading = threading.Thread(target=_upload_at_last, args=(transport, across, uploaded))
    uploading.start()
    noticed = _until(stub, False, _NOTICED_SECONDS)
    time.sleep(max(0.0, seconds - (time.monotonic() - stopped)))
    store.start()
    ready = _until(stub, True, _READY_SECONDS)
    over.set()
    asking.join()
    uploading.join()
    kept = all(_right(transport, i, s.sha256) for i, s in ((known, before), (uploaded[0] if uploaded else "", across)))
    return {
        "not_ready_after_seconds": noticed,
        "ready_again_after_seconds": ready,
        "answers": dict(answers),
        "ok": noticed is not None and ready is not None and kept and not answers["wrong"] and not answers["INTERNAL"],
    }


def _until(stub: Any, ready: bool, seconds: float) -> float | None:
    """How long it took until the server said so; None when it did not within `seconds`."""
    started, wanted = time.monotonic(), health_pb2.HealthCheckResponse.SERVING
    while time.monotonic() - started < seconds:
        said = stub.Check(health_pb2.HealthCheckRequest(service=_READINESS), timeout=10).status
        if (said == wanted) == ready:
            return round(time.monotonic() - started, 2)
        time.sleep(0.05)
    return None


def _upload(transport: Transport, spool: FileSpool) -> str:
    return Uploader(transport, 64 << 10).upload(spool, PARAMS, spec_digest()).key_set_id  # type: ignore[arg-type]


def _upload_at_last(transport: Transport, spool: FileSpool, done: list[str]) -> None:
    """As an application that does not give up."""
    while not done:
        with contextlib.suppress(ServerError):
            done.append(_upload(transport, spool))


def _right(transport: Transport, key_set_id: str, sha256: str) -> bool:
    reply = transport.infer(InferenceCall("digits", "", "", key_set_id, b"echo:x"))
    return reply.ciphertexts == sha256.encode() + b"|x"


def _ask(transport: Transport, key_set_id: str, sha256: str, answers: Counter[str], over: threading.Event) -> None:
    while not over.wait(0.1):
        try:
            answers["right" if _right(transport, key_set_id, sha256) else "wrong"] += 1
        except ServerError as error:
            answers[error.reason.value] += 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each outage")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="secateur-outages-") as place:
        report = outages(Path(place), options.seconds)
    print(json.dumps(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
