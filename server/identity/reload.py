"""What is read from files and read again when they change, without a restart."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from ..observe.logs import event

__all__ = ["Reloading"]

T = TypeVar("T")
_Stamp = tuple[tuple[int, int, int], ...]


class Reloading(Generic[T]):
    """The value that `load` makes of `paths`; while a changed set of files does not load, the last one that did.

    Certificate and key are replaced one after the other, so a set that does not fit together is normal for a moment:
    it is logged and looked at again once a file changes. Thread-safe. The constructor raises what `load` raises.
    """

    def __init__(self, name: str, paths: Sequence[Path], load: Callable[[], T]) -> None:
        self._name = name
        self._paths = tuple(paths)
        self._load = load
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._value = load()

    def get(self) -> T:
        with self._lock:
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._value = self._load()
                    event("reloaded", what=self._name)
                except Exception as error:  # whatever lies there now, what is in force must stay
                    event("not reloaded", level=logging.ERROR, what=self._name, cause=str(error))
            return self._value

    def _look(self) -> _Stamp:
        """Times, sizes and inodes, taken before reading: a change while reading is seen the next time."""
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)
