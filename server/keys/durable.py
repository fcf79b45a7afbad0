"""File operations that survive a power cut: after each returns, what it did is on disk."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..errors import ConfigError

__all__ = ["hash_file", "hash_pieces", "make_directory", "move", "own", "probe", "remove", "sync_directory"]

_BLOCK_BYTES = 1 << 20


def sync_directory(path: Path) -> None:
    """A rename or an unlink is durable only once its directory is."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def own(path: Path) -> int:
    """Lock `path` for this process until the returned descriptor is closed; ConfigError when somebody else has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(
            f"cannot use {path.parent}: another server uses it; need a state directory of its own"
        ) from error
    return descriptor


def make_directory(path: Path) -> None:
    """Make one directory (0700) below an existing one, unless it is there."""
    if not path.is_dir():
        path.mkdir(mode=0o700, exist_ok=True)
        sync_directory(path.parent)


def move(source: Path, target: Path) -> None:
    """Atomic rename within one file system; the file's content must have been synced by its writer."""
    os.replace(source, target)
    sync_directory(target.parent)
    if source.parent != target.parent:
        sync_directory(source.parent)


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def probe(path: Path, min_free_bytes: int) -> None:
    """Write, sync and remove a small file; OSError where that fails or the disk would soon be full."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, bytes(4096))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)
    free = os.statvfs(path.parent)
    if free.f_bavail * free.f_frsize < min_free_bytes:
        raise OSError(errno.ENOSPC, f"less than {min_free_bytes} bytes are free on the disk")


def hash_file(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_pieces(path: Path, sizes: Iterable[int]) -> tuple[list[str], str]:
    """The sha256 of each piece of a file, and of the whole, in one pass and two threads."""
    whole, found = hashlib.sha256(), []
    with path.open("rb") as file, ThreadPoolExecutor(1, "secateur-hash") as pool:
        for size in sizes:
            piece, left = hashlib.sha256(), size
            while block := file.read(min(left, _BLOCK_BYTES)):
                other = pool.submit(whole.update, block)
                piece.update(block)
                left -= len(block)
                other.result()
            found.append(piece.hexdigest())
    return found, whole.hexdigest()
