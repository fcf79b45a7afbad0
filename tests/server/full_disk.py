"""A disk that is full, or slow, for the audit log."""

from __future__ import annotations

import errno
import os
import threading

import pytest


class Disk:
    """os.write that can be full, and takes half of what it cannot take whole; or waits until it may write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.may_write = threading.Event()
        self.may_write.set()
        real = os.write

        def write(descriptor: int, data: bytes) -> int:
            if b'"action"' in data:
                assert self.may_write.wait(10)
                if self.full:
                    real(descriptor, data[: len(data) // 2])
                    raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, data)

        monkeypatch.setattr("server.identity.audit_files.os.write", write)
