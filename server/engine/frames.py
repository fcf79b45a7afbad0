"""What the front door and a worker say to each other: a JSON header and a payload, each one length-prefixed frame.

JSON and not pickle, because a worker parses strangers' bytes: should one ever be taken over, its replies must not be able to run
code in the front door.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal

from he_runtime.errors import Reason

__all__ = ["CancelFlag", "Job", "Outcome", "outcome_of", "receive_job", "receive_outcome", "send_job", "send_outcome"]

_MAX_HEADER_BYTES = 1 << 20
JobKind = Literal["infer", "check_keys", "load", "forget"]


@dataclass(frozen=True)
class Job:
    """A piece of work. `deadline` is time.monotonic() of this machine, which all its processes share; `call` are the facts
    that the caller's lines in the log have (server.observe.logs.of_call), for the worker's.

    infer: evaluate the payload under the keys. check_keys: parse the keys against the plan. load: load the model.
    forget: drop the key sets that were posted (server.engine.forgetting), and say what is left.
    """

    number: int
    kind: JobKind
    directory: str
    deadline: float
    key_path: str = ""
    key_sha256: str = ""
    call: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a job. `reason` is empty for success; `resident` are digests of the keys the worker now holds.

    `layer_ms` are milliseconds of the evaluation by layer; `key_cache` has the bytes, hits, misses and evictions of
    the worker's loaded keys since it started.
    """

    number: int
    reason: str = ""
    message: str = ""
    load_ms: float = 0.0
    evaluate_ms: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    resident: list[str] = field(default_factory=list)
    layer_ms: dict[str, float] = field(default_factory=dict)
    key_cache: dict[str, int] = field(default_factory=dict)


class CancelFlag:
    """Eight shared bytes: the number of the job that is to stop. One writer (front door), one reader (worker)."""

    SIZE = 8

    def __init__(self, memory: Any) -> None:
        self._view = memoryview(memory)[: self.SIZE].cast("Q")

    def request(self, number: int) -> None:
        self._view[0] = number

    def is_requested(self, number: int) -> bool:
        return self._view[0] == number

    def close(self) -> None:
        self._view.release()


def send_job(connection: Connection, job: Job, payload: bytes) -> None:
    connection.send_bytes(json.dumps(asdict(job)).encode())
    connection.send_bytes(payload)


def receive_job(connection: Connection) -> tuple[Job, bytes]:
    """The next job; EOFError once the front door is gone or done."""
    header = json.loads(connection.recv_bytes())
    return Job(**header), connection.recv_bytes()


def send_outcome(connection: Connection, outcome: Outcome, payload: bytes = b"") -> None:
    connection.send_bytes(json.dumps(asdict(outcome)).encode())
    connection.send_bytes(payload)


def receive_outcome(connection: Connection, max_payload_bytes: int) -> tuple[Outcome, bytes]:
    """The worker's answer, distrusted: OSError for an oversized frame, ValueError for a malformed one."""
    record = json.loads(connection.recv_bytes(_MAX_HEADER_BYTES))
    return outcome_of(record), connection.recv_bytes(max_payload_bytes)


def outcome_of(record: Any) -> Outcome:
    """The outcome of a parsed header; ValueError, TypeError or KeyError for what is none."""
    if not isinstance(record, dict) or set(record) != set(Outcome.__dataclass_fields__):
        raise ValueError("the worker's outcome has other fields than this build knows")
    if record["reason"]:
        Reason(record["reason"])
    return Outcome(
        number=int(record["number"]),
        reason=str(record["reason"]),
        message=str(record["message"]),
        load_ms=_duration(record["load_ms"]),
        evaluate_ms=_duration(record["evaluate_ms"]),
        counts={str(k): int(v) for k, v in record["counts"].items()},
        resident=[str(s) for s in record["resident"]],
        layer_ms={str(k): _duration(v) for k, v in record["layer_ms"].items()},
        key_cache={str(k): int(v) for k, v in record["key_cache"].items()},
    )


def _duration(value: Any) -> float:
    """Sums and histograms are made of these: one NaN or negative value would spoil them for good."""
    ms = float(value)
    if not 0 <= ms < math.inf:
        raise ValueError("the worker's outcome has a duration that is none")
    return ms
