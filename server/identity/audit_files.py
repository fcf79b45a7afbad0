"""The files of an audit log: appended to, rotated by size and count, and never left with half a line."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..keys.durable import own
from ..observe.logs import event
from . import audit_chain
from .audit_chain import FIRST, HEAD, SHORT, Link
from .settings import AuditConfig

__all__ = ["AuditFiles"]


class AuditFiles:
    """Used by one thread. A directory that cannot be used now is tried again with every batch.

    Raises ConfigError when another server owns the directory.
    """

    def __init__(self, directory: Path, config: AuditConfig) -> None:
        self._directory = directory
        self._config = config
        self._owner: int | None = None
        self._file: int | None = None
        self._bytes = 0  # of the open file that are whole lines
        self._last = FIRST
        try:
            self._open()
        except OSError as error:
            event("audit log not opened", level=logging.ERROR, cause=str(error))

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write a line for each record; OSError when the disk does not take them all, and then none of them is there."""
        if self._file is None:
            self._open()
        self._append(records)

    def _append(self, records: Sequence[Mapping[str, Any]]) -> None:
        if self._bytes >= self._config.max_bytes:
            self._start_file()
        assert self._file is not None
        lines, link = [], self._last
        for record in records:
            line, link = audit_chain.linked(link, record)
            lines.append(line + "\n")
        data = "".join(lines).encode()
        try:
            written = os.write(self._file, data)
            if written < len(data):
                raise OSError(f"the disk took {written} of {len(data)} bytes")
            if self._config.required:
                os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._bytes)
            raise
        self._bytes += len(data)
        self._last = link
        self._write_head()

    def _open(self) -> None:
        """Go on where the last server stopped."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._owner is None:
            self._owner = own(self._directory / "lock")
        files, opening = audit_chain.files_of(self._directory), {"action": "audit.opened", "time": _now()}
        torn = _cut_torn_line(files[-1]) if files else 0
        self._last, whole = _last_link(files)
        if files and whole:
            self._file = _open_file(files[-1])
            self._bytes = os.fstat(self._file).st_size
        else:
            self._start_file()
        head = audit_chain.read_head(self._directory)
        if head is not None and head.seq > self._last.seq:
            opening |= {"action": SHORT, "head_seq": str(head.seq), "head_hash": head.hash}
        if torn:
            opening["torn_bytes"] = str(torn)
        if not whole:
            opening["cause"] = "the last record does not verify"
        try:
            self._append([opening])
        except OSError:
            self._let_go()  # so that the next attempt begins with this record again
            raise
        event("audit", seq=self._last.seq, hash=self._last.hash)  # the server's log often lies on another machine

    def _start_file(self) -> None:
        """Begin the next file, and remove the oldest beyond the configured number."""
        path = self._directory / f"audit-{self._last.seq + 1:012d}.jsonl"
        file = _open_file(path)
        if self._file is not None:
            os.close(self._file)
            event("audit", seq=self._last.seq, hash=self._last.hash)
        self._file, self._bytes = file, os.fstat(file).st_size
        for old in audit_chain.files_of(self._directory)[: -self._config.max_files]:
            old.unlink(missing_ok=True)

    def _write_head(self) -> None:
        """Name the last line. Replaced as a whole; a failure costs only that a cut at the very end goes unnoticed."""
        temporary = self._directory / f"{HEAD}.new"
        try:
            temporary.write_text(json.dumps({"seq": self._last.seq, "hash": self._last.hash}))
            os.replace(temporary, self._directory / HEAD)
        except OSError as error:
            event("audit head not written", level=logging.WARNING, cause=str(error))

    def close(self) -> None:
        event("audit", seq=self._last.seq, hash=self._last.hash)
        self._let_go()
        if self._owner is not None:
            os.close(self._owner)
        self._owner = None

    def _let_go(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None


def _open_file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _cut_torn_line(path: Path) -> int:
    """Remove what a crash left of a line; the number of bytes."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return len(content) - whole


def _last_link(files: Sequence[Path]) -> tuple[Link, bool]:
    """Where the chain goes on, and whether its last line verifies: if not, a new file begins with a chain of its own."""
    for path in reversed(files):
        lines = path.read_text(errors="replace").splitlines()
        if not lines:
            continue
        try:
            return audit_chain.read_line(lines[-1])[1], True
        except (ValueError, RecursionError):
            return Link(int(path.stem.removeprefix("audit-")) + len(lines) - 1, FIRST.hash), False
    return FIRST, True


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
