"""Key sets that a worker must drop from its memory: posted by the front door, dropped by the worker between two operations.

The names go through memory that both share, because a worker reads its socket only between two jobs, and a deleted key
set must not stay for as long as an evaluation under other keys takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from .lru import CostLru
from .runtime import LoadedKeys

__all__ = ["ForgetBoard", "HeldKeys"]

_DIGEST_BYTES = 32


class ForgetBoard:
    """A ring of digests of the latest names, behind their count. One writer (front door), one reader (worker)."""

    PLACES = 64
    SIZE = 8 + PLACES * _DIGEST_BYTES

    def __init__(self, memory: Any) -> None:
        view = memoryview(memory)[: self.SIZE]
        self._count = view[:8].cast("Q")
        self._digests = view[8:]
        self._posted = 0  # what a worker may have made of the shared count is not believed

    def post(self, name: str) -> None:
        at = self._posted % self.PLACES * _DIGEST_BYTES
        self._digests[at : at + _DIGEST_BYTES] = digest(name)
        self._posted += 1
        self._count[0] = self._posted

    @property
    def count(self) -> int:
        return int(self._count[0])

    def between(self, seen: int, count: int) -> frozenset[bytes] | None:
        """Digests of the names from `seen` up to `count`; None where some were overwritten before they were read."""
        if count - seen >= self.PLACES:
            return None
        places = (i % self.PLACES * _DIGEST_BYTES for i in range(seen, count))
        found = frozenset(bytes(self._digests[at : at + _DIGEST_BYTES]) for at in places)
        return found if self.count - seen < self.PLACES else None

    def close(self) -> None:
        self._count.release()
        self._digests.release()


def digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


class HeldKeys:
    """A worker's loaded key sets, least recently used first to go, by (model directory, name).

    The set that the job under way uses, or is loading, is dropped after the job; any other at once. `release` is called
    after a drop, to give the memory back to the system.
    """

    def __init__(
        self, budget_bytes: int, board: ForgetBoard | None = None, release: Callable[[], None] = lambda: None
    ) -> None:
        # Keys belong to a model: a loaded set is checked against one plan and may be cut down to it.
        self._sets: CostLru[tuple[str, str], LoadedKeys] = CostLru(budget_bytes, lambda keys: keys.byte_size)
        self._board = board
        self._release = release
        self._seen = 0
        self._in_use = ""
        self._drop_in_use = False

    def names(self) -> list[str]:
        return [name for _, name in self._sets.keys()]  # noqa: SIM118 - not a dict

    def figures(self) -> dict[str, int]:
        """What is held, and what became of the look-ups since the worker started."""
        sets = self._sets
        return {"bytes": sets.total, "hits": sets.hits, "misses": sets.misses, "evictions": sets.evictions}

    def get(self, directory: str, name: str) -> LoadedKeys | None:
        return self._sets.get((directory, name))

    def put(self, directory: str, name: str, keys: LoadedKeys) -> None:
        self._sets.put((directory, name), keys)

    def begin(self, name: str) -> None:
        """A job under the set `name` begins."""
        self.forget()
        self._in_use = name

    def end(self) -> None:
        """The job is over."""
        self.forget()
        if self._drop_in_use:
            self._drop({self._in_use})
        self._in_use, self._drop_in_use = "", False

    def forget(self) -> None:
        """Drop what was posted since the last time. Cheap where nothing was: evaluation calls it between operations."""
        if self._board is None or (count := self._board.count) == self._seen:
            return
        posted, self._seen = self._board.between(self._seen, count), count
        gone = {name for name in (*self.names(), self._in_use) if name and (posted is None or digest(name) in posted)}
        self._drop_in_use = self._drop_in_use or self._in_use in gone
        self._drop(gone - {self._in_use})

    def _drop(self, names: set[str]) -> None:
        gone = [at for at in self._sets.keys() if at[1] in names]  # noqa: SIM118 - not a dict
        for at in gone:
            self._sets.drop(at)
        if gone:
            self._release()
