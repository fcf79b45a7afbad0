"""Jobs on disk: one record and at most one result each, so that what was finished survives the server.

    state/jobs/records/<name>   JSON, replaced whole
    state/jobs/results/<name>   the reply, there before its record says so

A name is random and no capability; ids of jobs are stored as their SHA-256 only. All methods block on the disk.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from he_runtime.errors import Reason
from protos.native import JobState

from ..keys.durable import move
from ..observe.logs import event

__all__ = ["LOST_MESSAGE", "JobRecord", "JobSpool"]

LOST_MESSAGE = (
    "cannot finish the job: got a server that ended during it; try submitting it again, under the same request_id"
)


@dataclass(frozen=True)
class JobRecord:
    """What is known of a job. `request` makes equal requests the same job; times are seconds since the epoch."""

    name: str
    tenant: str
    id_hashes: tuple[str, ...]
    request: tuple[str, ...]
    created: float
    state: JobState = JobState.QUEUED
    ended: float = 0.0
    reason: str = ""
    message: str = ""
    result_bytes: int = 0


class JobSpool:
    """The directory. Opening it removes what no record speaks of, and marks as lost what the last server did not finish."""

    def __init__(self, directory: Path) -> None:
        self._records = directory / "records"
        self._results = directory / "results"
        for part in (self._records, self._results):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open(self, now: float) -> list[JobRecord]:
        """Every job, the oldest first."""
        found = sorted(self._read_all(), key=lambda record: record.created)
        kept = []
        for record in found:
            if not record.state.is_final:
                record = replace(
                    record, state=JobState.FAILED, ended=now, reason=Reason.WORKER_LOST.value, message=LOST_MESSAGE
                )
                self.save(record)
            kept.append(record)
        names = {record.name for record in kept if record.state is JobState.SUCCEEDED}
        for path in self._results.iterdir():
            if path.name not in names:
                path.unlink()
        return kept

    def _read_all(self) -> Iterator[JobRecord]:
        for path in list(self._records.iterdir()):
            try:
                record = _parse(json.loads(path.read_bytes()))
                if record.name != path.name or (record.result_bytes and not self._has_result(record)):
                    raise ValueError("it is not its own, or lacks its result")
            except (ValueError, TypeError, KeyError) as error:
                event("job record dropped", level=logging.ERROR, cause=str(error))
                path.unlink()
            else:
                yield record

    def _has_result(self, record: JobRecord) -> bool:
        try:
            return (self._results / record.name).stat().st_size == record.result_bytes
        except FileNotFoundError:
            return False

    def save(self, record: JobRecord, result: bytes | None = None) -> None:
        """Record and result are on disk when this returns; after a crash either both are new or neither."""
        if result is not None:
            _replace(self._results / record.name, result)
        _replace(self._records / record.name, json.dumps(asdict(record)).encode())

    def result(self, name: str) -> bytes:
        """FileNotFoundError when it has been dropped."""
        return (self._results / name).read_bytes()

    def drop(self, name: str) -> None:
        for part in (self._records, self._results):
            with contextlib.suppress(FileNotFoundError):
                (part / name).unlink()


def _parse(record: dict[str, Any]) -> JobRecord:
    made = JobRecord(**record)
    return replace(
        made,
        id_hashes=tuple(map(str, made.id_hashes)),
        request=tuple(map(str, made.request)),
        state=JobState(made.state),
        created=float(made.created),
    )


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and have it on disk."""
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # a full disk gets its bytes back
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    move(partial, path)
