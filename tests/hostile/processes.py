"""Children and memory of processes, from /proc."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Sizes", "children", "forget_peaks"]

_MIB = 1 << 20


def children(pid: int) -> tuple[int, ...]:
    return tuple(int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def _mib(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / _MIB
    return 0.0


@dataclass(frozen=True)
class Sizes:
    """Resident memory in MiB, now and at its peak, of the front door and of the largest worker."""

    front: float
    front_peak: float
    worker: float
    worker_peak: float

    @classmethod
    def of(cls, front: int, workers: Iterable[int]) -> Sizes:
        each = [(_mib(pid, "VmRSS"), _mib(pid, "VmHWM")) for pid in workers]
        now, peak = max((size for size, _ in each), default=0.0), max((peak for _, peak in each), default=0.0)
        return cls(_mib(front, "VmRSS"), _mib(front, "VmHWM"), now, peak)


def forget_peaks(pids: Iterable[int]) -> None:
    """Let the peaks begin anew, where the system allows that."""
    for pid in pids:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")
