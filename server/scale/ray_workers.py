"""The front door's end of workers in a Ray cluster: the same calls as for worker processes, by Ray Serve's handles.

Ray Serve chooses the replica, by the key set that a call names (its multiplexed id), restarts those that are lost, and places
them on the machines of the cluster. What comes in is never Ray's: the front door keeps TLS, identity and admission.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import threading
import time
from dataclasses import asdict, replace
from importlib import import_module
from typing import Any

from ..engine.frames import Job, Outcome, outcome_of
from ..engine.progress import Progress
from ..engine.worker_process import WorkerLost, WorkerSettings
from ..observe.logs import event

__all__ = ["RayWorker", "RayWorkers"]

_OBJECT_STORE_BYTES = 512 << 20  # of a cluster of our own: payloads and replies under way


class RayWorkers:
    """A Ray Serve application of as many replicas as workers are configured. Methods block, and may come from any thread."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._name = f"secateur-{secrets.token_hex(4)}"  # several front doors may use one cluster
        self._serve: Any = None
        self._handle: Any = None

    def worker(self) -> RayWorker:
        """One more call at a time."""
        return RayWorker(self)

    def handle(self) -> Any:
        """Connect and deploy, once. WorkerLost when that fails."""
        with self._lock:
            if self._handle is None:
                try:
                    self._connect()
                    self._handle = self._deploy()
                except Exception as error:  # of Ray, whose kinds are many
                    raise WorkerLost(f"Ray does not start: {type(error).__name__}: {error}") from error
            return self._handle

    def _connect(self) -> None:
        engine = self._settings.engine
        common: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if not engine.ray_address:
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            common |= {"num_cpus": engine.workers * engine.threads, "include_dashboard": False}
            common |= {"object_store_memory": _OBJECT_STORE_BYTES, "_node_ip_address": "127.0.0.1"}
            path = os.pathsep.join(os.path.abspath(p) for p in sys.path)
            common |= {"runtime_env": {"env_vars": {"PYTHONPATH": path}}}
        ray = import_module("ray")
        ray.init(address=engine.ray_address or "local", **common)
        event("ray connected", address=engine.ray_address or "local")

    def _deploy(self) -> Any:
        self._serve = import_module("ray.serve")
        replica = import_module("server.scale.ray_replica").Replica
        engine = self._settings.engine
        self._serve.start(proxy_location="Disabled")
        deployment = self._serve.deployment(
            num_replicas=engine.workers,
            max_ongoing_requests=1,
            ray_actor_options={"num_cpus": engine.threads},
            health_check_period_s=2,
            health_check_timeout_s=10,
            graceful_shutdown_timeout_s=2,
        )(replica)
        return self._serve.run(deployment.bind(self._settings), name=self._name, route_prefix=None)

    def close(self) -> None:
        """Remove the application, and end a cluster of our own."""
        with self._lock:
            if self._serve is None:
                return
            try:
                self._serve.delete(self._name)
                if not self._settings.engine.ray_address:
                    self._serve.shutdown()
            except Exception as error:
                event("ray does not end", level=logging.WARNING, error=error)
            self._serve = self._handle = None
            import_module("ray").shutdown()


class RayWorker:
    """A place for one job at a time. `call` blocks and is used by one thread; `cancel` and `kill` may come from another."""

    pid = 0  # somewhere in the cluster

    def __init__(self, workers: RayWorkers) -> None:
        self._workers = workers
        self._lock = threading.Lock()
        self._number = 0
        self._response: Any = None
        self._cancelled = 0
        self._progress: tuple[int, Progress] | None = None
        self.alive = True

    def wait_until_up(self) -> None:
        """Return once the application runs; WorkerLost if it does not."""
        self._workers.handle()

    def call(self, job: Job, payload: bytes) -> tuple[Outcome, bytes]:
        """Do one job on the replica that Ray chooses; WorkerLost when it dies on it."""
        if not self.alive:
            raise WorkerLost("it was given up", before_start=True)
        record = {**asdict(job), "deadline": job.deadline - time.monotonic()}
        options = self._workers.handle().options(stream=True, multiplexed_model_id=job.key_sha256)
        with self._lock:
            self._number, self._progress = job.number, None
            self._response = options.do.remote(record, payload)
            if self._cancelled == job.number:
                self._response.cancel()
        try:
            return self._follow(job)
        except WorkerLost:
            raise
        except BaseException as error:  # Ray says "cancelled" in several ways, of which one is no Exception
            if self._cancelled == job.number and self.alive:
                return Outcome(job.number, "CANCELLED", "cannot finish: the caller cancelled"), b""
            raise WorkerLost(type(error).__name__) from error
        finally:
            with self._lock:
                self._number, self._response = 0, None

    def _follow(self, job: Job) -> tuple[Outcome, bytes]:
        for kind, *rest in self._response:
            if kind == "progress":
                self._progress = job.number, Progress(**rest[0])
            elif kind == "lost":
                raise WorkerLost(rest[0], before_start=rest[1])
            else:
                outcome = outcome_of(json.loads(rest[0]))
                # Which replica comes next is Ray's to say, so that no place holds keys.
                return replace(outcome, resident=[]), bytes(rest[1])
        raise WorkerLost("no outcome")

    def cancel(self, number: int) -> None:
        """Have the replica stop job `number` at its next check."""
        with self._lock:
            self._cancelled = number
            if self._response is not None and self._number == number:
                self._response.cancel()

    def forget(self, name: str) -> bool:
        """Nothing to do here: each replica looks for itself which key sets are gone."""
        return False

    def progress(self, number: int) -> Progress | None:
        """How far job `number` is, as far as its replica has said."""
        found = self._progress
        return found[1] if found is not None and found[0] == number else None

    def kill(self) -> None:
        """Give the place up: a `call` under way raises WorkerLost, and its replica frees itself."""
        with self._lock:
            self.alive = False
            if self._response is not None:
                self._response.cancel()

    def close(self, seconds: float = 2.0) -> None:
        """Nothing of its own is left to end."""
        self.alive = False
