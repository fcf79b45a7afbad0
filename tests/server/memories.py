"""What other processes hold in their memory, and waiting for that to change."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["holds", "until"]


def until(what: Callable[[], bool], seconds: float = 10.0) -> float:
    """Wait for it; how long that took."""
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < seconds, "it does not come about"
        time.sleep(0.005)
    return time.monotonic() - started


def holds(pid: int, content: bytes) -> bool:
    """Whether the memory of a process has 64 bytes of the middle of `content`."""
    needle = content[1 << 19 :][:64]
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span, rights, *_ = line.split()
            start, end = (int(x, 16) for x in span.split("-"))
            if "rw" not in rights or end - start > 1 << 30:
                continue
            try:
                memory.seek(start)
                if needle in memory.read(end - start):
                    return True
            except OSError:
                continue
    return False
