"""A worker process: `python -m server.engine.worker`, started by server.engine.worker_process and by nobody else.

It holds models and keys, parses the bytes of strangers, evaluates, and answers. It never imports gRPC, opens no socket
of its own, and ends when the front door does. One job at a time; a crash here costs one request.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from he_runtime.errors import Cancelled, Reason, SecateurError

from ..errors import ServiceError
from ..observe.logs import event, set_up, within
from .forgetting import ForgetBoard, HeldKeys
from .frames import CancelFlag, Job, Outcome, receive_job, send_outcome
from .layer_clock import LayerClock
from .lru import CostLru
from .progress import ProgressBoard, ProgressWriter
from .runtime import LoadedKeys, Runtime, WorkerModel, load_runtime
from .shared import SHARED_BYTES, divided

__all__ = ["Worker", "main"]


@dataclass(frozen=True)
class _Timed:
    """Milliseconds of the two phases of a job, and of each layer within the second."""

    load_ms: float
    evaluate_ms: float
    layer_ms: dict[str, float]


class Worker:
    """Models and keys in memory, and the jobs on them."""

    def __init__(
        self,
        runtime: Runtime,
        backend: str,
        key_cache_bytes: int,
        max_models: int,
        max_reply_bytes: int,
        board: ProgressBoard | None = None,
        gone: ForgetBoard | None = None,
    ) -> None:
        self._max_reply_bytes = max_reply_bytes
        self._runtime = runtime
        self._backend = backend
        self._board = board
        self._models: CostLru[str, WorkerModel] = CostLru(max_models, lambda model: 1)
        self.keys = HeldKeys(key_cache_bytes, gone, getattr(runtime, "release", lambda: None))

    def do(self, job: Job, payload: bytes, check: Callable[[], None]) -> tuple[bytes, dict[str, int], _Timed]:
        """Carry out one job; raises errors of the tree."""
        self.keys.begin(job.key_sha256)
        try:
            if job.kind == "forget":
                return b"", {}, _Timed(0.0, 0.0, {})
            return self._do(job, payload, self._forgetting(check))
        finally:
            self.keys.end()

    def _forgetting(self, check: Callable[[], None]) -> Callable[[], None]:
        """`check`, which evaluation calls between any two operations, and what else is done then."""

        def check_and_forget() -> None:
            check()
            self.keys.forget()

        return check_and_forget

    def _do(self, job: Job, payload: bytes, check: Callable[[], None]) -> tuple[bytes, dict[str, int], _Timed]:
        started = time.monotonic()
        check()
        model = self._model(job.directory)
        keys = None if job.kind == "load" else self._load_keys(model, job, check)
        loaded = time.monotonic()
        reply, counts, clock = b"", {}, LayerClock()
        if job.kind == "infer":
            reply, executed = model.run(payload, keys, check, self._watch(job, model, clock))
            clock.stop()
            counts = {str(k): int(v) for k, v in executed.items()}
            self._check_reply(reply)
        ended = time.monotonic()
        return reply, counts, _Timed((loaded - started) * 1e3, (ended - loaded) * 1e3, clock.ms)

    def _watch(self, job: Job, model: WorkerModel, clock: LayerClock) -> Callable[[str], None]:
        if self._board is None:
            return clock
        return ProgressWriter(self._board, job.number, getattr(model, "layers", {}), clock)

    def _check_reply(self, reply: bytes) -> None:
        if len(reply) > self._max_reply_bytes:
            message = (
                f"cannot reply: got {len(reply)} bytes, need at most {self._max_reply_bytes}; try the server's operator"
            )
            raise ServiceError(message, Reason.LIMIT_EXCEEDED)

    def _model(self, directory: str) -> WorkerModel:
        model = self._models.get(directory)
        if model is None:
            model = self._runtime.build(Path(directory), self._backend)
            self._models.put(directory, model)
        return model

    def _load_keys(self, model: WorkerModel, job: Job, check: Callable[[], None]) -> LoadedKeys:
        keys = self.keys.get(job.directory, job.key_sha256)
        if keys is None:
            try:
                keys = model.load_keys(Path(job.key_path), check)
            except FileNotFoundError:  # evicted between look-up and load
                message = "cannot find the key set: got one that was just evicted; try uploading the keys again"
                raise ServiceError(message, Reason.KEY_SET_UNKNOWN) from None
            self.keys.put(job.directory, job.key_sha256, keys)
        return keys


def _guard(job: Job, flag: CancelFlag, parent: int) -> Callable[[], None]:
    """The function that evaluation calls between any two HE operations."""

    def check() -> None:
        if flag.is_requested(job.number):
            raise Cancelled("cannot finish: the caller cancelled")
        if time.monotonic() > job.deadline:
            raise Cancelled("cannot finish: got a deadline that has passed; try a later one", Reason.DEADLINE_EXCEEDED)
        if os.getppid() != parent:
            raise SystemExit(0)

    return check


def _answer(worker: Worker, job: Job, payload: bytes, check: Callable[[], None]) -> tuple[Outcome, bytes]:
    """The job's outcome. Errors outside the tree are logged here and leave without their text, which may be a library's."""
    reason, message = Reason.INTERNAL, ""
    try:
        reply, counts, timed = worker.do(job, payload, check)
        return Outcome(job.number, **asdict(timed), counts=counts, **_held(worker)), reply
    except SecateurError as error:
        reason, message = error.reason, error.message
    except MemoryError:
        reason, message = Reason.SERVER_BUSY, "cannot evaluate: got too little memory for it; try again later"
    except Exception as error:
        event("job failed", level=logging.ERROR, error=error, job=job.number, kind=job.kind, directory=job.directory)
    return Outcome(job.number, reason, message, **_held(worker)), b""


def _held(worker: Worker) -> dict[str, Any]:
    return {"resident": worker.keys.names(), "key_cache": worker.keys.figures()}


def main(arguments: list[str]) -> int:
    """Arguments: connection fd, flag fd, parent pid, runtime, backend, key cache bytes, models, reply bytes, niceness,
    log level."""
    connection_fd, flag_fd, parent, runtime, backend, *numbers, niceness, log_level = arguments
    os.nice(int(niceness))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the front door decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    set_up(log_level)
    connection = Connection(int(connection_fd))
    memory = mmap.mmap(int(flag_fd), SHARED_BYTES)
    os.close(int(flag_fd))
    flag, board, gone = divided(memory)
    key_cache_bytes, max_models, max_reply_bytes = map(int, numbers)
    worker = Worker(load_runtime(runtime), backend, key_cache_bytes, max_models, max_reply_bytes, board, gone)
    send_outcome(connection, Outcome(0))  # number 0: up and waiting
    try:
        while True:
            job, payload = receive_job(connection)
            with within(**job.call):
                outcome, reply = _answer(worker, job, payload, _guard(job, flag, int(parent)))
            send_outcome(connection, outcome, reply)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
