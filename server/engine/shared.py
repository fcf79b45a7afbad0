"""What the memory that the front door shares with one worker is divided into."""

from __future__ import annotations

import mmap

from .forgetting import ForgetBoard
from .frames import CancelFlag
from .progress import ProgressBoard

__all__ = ["SHARED_BYTES", "divided"]

SHARED_BYTES = CancelFlag.SIZE + ProgressBoard.SIZE + ForgetBoard.SIZE


def divided(memory: mmap.mmap) -> tuple[CancelFlag, ProgressBoard, ForgetBoard]:
    """The three in their order; each is closed before the memory is."""
    behind = memoryview(memory)[CancelFlag.SIZE :]
    progress, gone = behind[: ProgressBoard.SIZE], behind[ProgressBoard.SIZE :]
    return CancelFlag(memory), ProgressBoard(progress), ForgetBoard(gone)
