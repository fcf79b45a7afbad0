"""Private files: directories 0700, files 0600, whole or absent, one process at a time."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import KeyStoreError

__all__ = ["locked", "private_directory", "storing", "write_atomic"]

_POLL_SECONDS = 0.05
_EXPOSED = stat.S_IRWXG | stat.S_IRWXO
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn what the system says of `path` (a full disk, no permission) into a KeyStoreError."""
    try:
        yield
    except OSError as error:
        raise KeyStoreError(
            f"cannot write {path}: {error.strerror or error}; need space and permission there; try another directory "
            "with home= or SECATEUR_HOME"
        ) from error


def private_directory(path: Path, *, readable: bool = False) -> Path:
    """Make `path` with mode 0700 if absent.

    Raises KeyStoreError when it cannot be made, or is an older one that others may enter (or, with `readable`, write).
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise KeyStoreError(
            f"cannot use directory {path}: {error.strerror or error}; try another one with home= or SECATEUR_HOME"
        ) from error
    mode = stat.S_IMODE(path.stat().st_mode)
    exposed = mode & (_WRITABLE if readable else _EXPOSED)
    if exposed and sys.platform != "win32":  # Windows has access lists, and the user's data directory is private
        need = "755" if readable else "700"
        raise KeyStoreError(f"cannot use directory {path}: its mode is {mode:o}, need {need}; try chmod {need}")
    return path


def _replace_file(temporary: Path, final: Path) -> None:
    """Move a finished file into place so that a crash leaves the old file or the new one, never a part."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(final)
    if sys.platform != "win32":
        directory = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` with mode 0600, whole or not at all; KeyStoreError when that fails."""
    with storing(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp creates 0600
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            _replace_file(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, timeout_seconds: float) -> Iterator[None]:
    """Hold an advisory lock on `path` (made if absent) against other processes; KeyStoreError after the timeout."""
    deadline = time.monotonic() + timeout_seconds
    with storing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        while not _try_lock(file):
            if time.monotonic() >= deadline:
                raise KeyStoreError(
                    f"cannot lock {path}: another process has held it for {timeout_seconds:.0f} s; "
                    "try again when the other client is done"
                )
            time.sleep(_POLL_SECONDS)
        yield  # closing the file releases the lock


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
