"""What is needed to watch a job and to decrypt its result, beside the key that decrypts it: 0600, for the id is a capability.

    <key entry>/jobs/<name>.json     name: the first 16 hexadecimal digits of its first id's sha256, which may be shown

A job goes with its key: deleting the entry makes its results unreadable, here as anywhere.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ._files import private_directory, write_atomic
from .errors import KeyStoreError

__all__ = ["JobRecord", "find_job", "forget_job", "keep_job", "list_jobs", "name_of"]

_NAME_DIGITS = 16
_MOST_BYTES = 64 << 20
_KEPT_SECONDS = 30 * 86400.0  # servers keep results for hours or days


@dataclass(frozen=True)
class JobRecord:
    """One submitted job: `spec` is the JSON of the checked client spec it was packed by, `created` seconds since the epoch."""

    job_id: str = field(repr=False)
    model: str
    version: str
    spec: str = field(repr=False)
    count: int
    single: bool
    up_bytes: int
    created: float
    first_name: str = ""  # of the id that it had before it was submitted again

    @property
    def name(self) -> str:
        return self.first_name or name_of(self.job_id)


def name_of(job_id: str) -> str:
    """What a job is called where others may look: it opens nothing."""
    return hashlib.sha256(job_id.encode()).hexdigest()[:_NAME_DIGITS]


def keep_job(entry: Path, record: JobRecord) -> None:
    """Store a job; those that are older than any server keeps results are dropped."""
    directory = private_directory(entry / "jobs")
    write_atomic(directory / f"{record.name}.json", json.dumps(asdict(record)).encode())
    for old in directory.glob("*.json"):
        if old.stat().st_mtime < time.time() - _KEPT_SECONDS:
            old.unlink(missing_ok=True)


def list_jobs(server: Path) -> list[tuple[Path, JobRecord]]:
    """(key entry, job) of one server's directory, the newest first; KeyStoreError for a damaged record."""
    found = [(path.parent.parent, _read(path)) for path in server.glob("*/jobs/*.json")]
    return sorted(found, key=lambda pair: -pair[1].created)


def find_job(server: Path, job: str) -> tuple[Path, JobRecord]:
    """The job with this id or name; KeyStoreError where there is none."""
    for name in (job, name_of(job)):
        if len(name) == _NAME_DIGITS and name.isalnum():
            for path in server.glob(f"*/jobs/{name}.json"):
                return path.parent.parent, _read(path)
    for entry, record in list_jobs(server):  # one that was submitted again keeps its name under another id
        if record.job_id == job:
            return entry, record
    raise KeyStoreError(
        "cannot find the job: got a name or id that was not submitted from here to this server, or is forgotten since; try "
        "listing the jobs"
    )


def forget_job(entry: Path, record: JobRecord) -> None:
    (entry / "jobs" / f"{record.name}.json").unlink(missing_ok=True)


def _read(path: Path) -> JobRecord:
    try:
        data = path.read_bytes()
        if len(data) > _MOST_BYTES:
            raise ValueError
        record = JobRecord(**json.loads(data))
        kinds = (record.job_id, str), (record.spec, str), (record.count, int), (record.created, float)
        if not all(type(value) is kind for value, kind in kinds):
            raise ValueError
    except (OSError, ValueError, TypeError) as error:
        raise KeyStoreError(f"cannot read the job in {path}: it is damaged; try deleting the file") from error
    return record
