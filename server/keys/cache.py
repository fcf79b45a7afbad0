"""Local copies of remote blobs within a byte budget, each checked against its digest before a worker may open it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["FileCache"]

_IN_USE_SECONDS = 30.0  # a worker opens what it was told of within this, or the set is asked for again


class FileCache:
    """Files <directory>/<name>, the least recently used removed when together over `budget_bytes`.

    One that was asked for within the last half minute stays, up to twice the budget: a worker may be about to open it.
    The content is lost with the directory, and nothing else. Thread-safe.
    """

    def __init__(self, directory: Path, budget_bytes: int) -> None:
        self._directory = directory
        self._budget = budget_bytes
        self._lock = threading.Lock()
        self._fetching: dict[str, threading.Lock] = {}
        self._used: dict[str, float] = {}
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in [p for p in directory.rglob("*") if p.is_file()]:
            if path.suffix:  # a fetch that was cut
                path.unlink()
            else:
                self._used[str(path.relative_to(directory))] = path.stat().st_mtime

    def __contains__(self, name: str) -> bool:
        return (self._directory / name).is_file()

    @property
    def total_bytes(self) -> int:
        with self._lock:
            return sum(self._size(name) for name in self._used)

    def get(self, name: str) -> Path | None:
        path = self._directory / name
        with self._lock:
            if not path.is_file():
                return None
            self._used[name] = time.time()
            return path

    @contextmanager
    def fetching(self, name: str) -> Iterator[None]:
        """One thread at a time fetches a name; the others then find it."""
        with self._lock:
            lock = self._fetching.setdefault(name, threading.Lock())
        try:
            with lock:
                yield
        finally:
            with self._lock:
                if not lock.locked():
                    self._fetching.pop(name, None)

    def put(self, name: str, sha256: str, blocks: Iterable[bytes | memoryview]) -> Path | None:
        """Store a blob's bytes; None, and nothing stored, where they do not have the digest."""
        path = self._directory / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        part = path.with_suffix(f".{threading.get_ident()}")
        hasher = hashlib.sha256()
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                for block in blocks:
                    hasher.update(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())  # what is found after a power cut is not fetched again
            if hasher.hexdigest() != sha256:
                return None
            with self._lock:
                self._make_room(part.stat().st_size)
                os.replace(part, path)
                self._used[name] = time.time()
            return path
        finally:
            part.unlink(missing_ok=True)

    def drop(self, name: str) -> None:
        with self._lock:
            self._remove(name)

    def _make_room(self, incoming: int) -> None:
        now, total = time.time(), sum(self._size(name) for name in self._used) + incoming
        for name, used in sorted(self._used.items(), key=lambda item: item[1]):
            if total <= self._budget or (now - used < _IN_USE_SECONDS and total <= 2 * self._budget):
                break
            total -= self._size(name)
            self._remove(name)

    def _remove(self, name: str) -> None:
        self._used.pop(name, None)
        (self._directory / name).unlink(missing_ok=True)

    def _size(self, name: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            return (self._directory / name).stat().st_size
        return 0
