"""The front door's end of one worker process: start, call, cancel, kill.

The process is a fresh interpreter with two inherited descriptors (a socket and a few bytes of shared memory). It is not
made by multiprocessing's spawn, which would run the caller's main module again in every worker.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ..config import EngineConfig
from .frames import Job, Outcome, receive_outcome, send_job
from .progress import Progress
from .runtime import OPERANDS
from .shared import SHARED_BYTES, divided

__all__ = ["WorkerLost", "WorkerProcess", "WorkerSettings"]


class WorkerLost(Exception):
    """The process died, or answered something that is no outcome; it is of no further use.

    `before_start` says that it was dead before it got the job, which may then go to another worker.
    """

    def __init__(self, message: str, before_start: bool = False) -> None:
        super().__init__(message)
        self.before_start = before_start


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is started with."""

    engine: EngineConfig
    max_reply_bytes: int
    log_level: str


class WorkerProcess:
    """One worker. `call` blocks and is used by one thread at a time; `cancel` and `kill` may come from another."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._closed = False
        ours, theirs = socket.socketpair()
        with ours, theirs, tempfile.TemporaryFile() as shared:
            shared.truncate(SHARED_BYTES)
            descriptors = (theirs.fileno(), shared.fileno())
            self._process = subprocess.Popen(
                _command(settings, descriptors),
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                env=_environment(settings),
            )
            self._memory = mmap.mmap(shared.fileno(), SHARED_BYTES)
            self._flag, self._board, self._gone = divided(self._memory)
            self._connection = Connection(ours.detach())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_until_up(self) -> None:
        """Return once the worker waits for jobs; WorkerLost if it is not up in time."""
        ready, _, _ = select.select([self._connection], [], [], self._settings.engine.start_seconds)
        if not ready:
            raise WorkerLost(f"not up after {self._settings.engine.start_seconds} s")
        self._receive(0)

    def call(self, job: Job, payload: bytes) -> tuple[Outcome, bytes]:
        """Do one job; WorkerLost when the process dies on it."""
        if self._process.poll() is not None:
            raise WorkerLost("the process had ended", before_start=True)
        try:
            send_job(self._connection, job, payload)
        except OSError as error:  # it dies before it has the whole job, or never begins
            raise WorkerLost(str(error), before_start=True) from error
        return self._receive(job.number)

    def _receive(self, number: int) -> tuple[Outcome, bytes]:
        try:
            outcome, reply = receive_outcome(self._connection, self._settings.max_reply_bytes)
        except (EOFError, OSError, ValueError, TypeError, KeyError) as error:
            raise WorkerLost(type(error).__name__) from error
        if outcome.number != number:
            raise WorkerLost("an outcome of another job")
        return outcome, reply

    def cancel(self, number: int) -> None:
        """Ask the worker to stop job `number` at its next check."""
        self._flag.request(number)

    def forget(self, name: str) -> bool:
        """Have the worker drop a key set at its next check, or with its next job; whether there is one to do so."""
        if self._closed or not self.alive:
            return False
        with contextlib.suppress(ValueError):  # closed just now
            self._gone.post(name)
        return True

    def progress(self, number: int) -> Progress | None:
        """How far job `number` is, as far as the worker has said."""
        return None if self._closed else self._board.read(number)

    def kill(self) -> None:
        """End the process now; a `call` under way raises WorkerLost."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def close(self, seconds: float = 2.0) -> None:
        """Let an idle worker end by itself, or kill it; then release everything. Not while a `call` is under way."""
        self._connection.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        self._closed = True
        self._flag.close()
        self._board.close()
        self._gone.close()
        self._memory.close()


def _command(settings: WorkerSettings, descriptors: tuple[int, int]) -> list[str]:
    engine = settings.engine
    return [
        sys.executable,
        "-m",
        "server.engine.worker",
        *(str(d) for d in descriptors),
        str(os.getpid()),
        engine.runtime,
        engine.backend,
        str(engine.key_cache_bytes),
        str(engine.models_per_worker),
        str(settings.max_reply_bytes),
        str(engine.niceness),
        settings.log_level,
    ]


def _environment(settings: WorkerSettings) -> dict[str, str]:
    """The worker finds the modules that the front door found, and its libraries keep to the configured threads."""
    threads = str(settings.engine.threads)
    path = os.pathsep.join(os.path.abspath(p) for p in sys.path)
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "SECATEUR_THREADS")
    limits = dict.fromkeys(names, threads)
    operands = settings.engine.operands
    shared = {} if operands is None else {OPERANDS: os.path.abspath(operands)}
    return {**os.environ, **limits, **shared, "PYTHONPATH": path}
