"""A disk that is full for the audit log."""

from __future__ import annotations

import errno
import os

import pytest


class Disk:
    """os.write that can be full, and takes half of what it cannot take whole."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        real = os.write

        def write(descriptor: int, data: bytes) -> int:
            if self.full and b'"action"' in data:
                real(descriptor, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, data)

        monkeypatch.setattr("server.identity.audit_files.os.write", write)
