"""The file that holds a secret key: mode 0600, written atomically, tied to its parameters by their digest.

Text line by line (format, parameter digest, sha256 of the rest), then SEAL's own bytes of the key.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from io import FileIO
from pathlib import Path

from ..errors import KeyMismatch, Reason, WireError
from ..params import CkksParams

__all__ = ["read", "write"]

_FORMAT = b"secateur secret key 1"
_HEAD_BYTES = len(_FORMAT) + 1 + 65 + 65


def write(path: Path, params: CkksParams, data: bytearray) -> None:
    """Write beside `path` to a new 0600 file, flush it to the disk, and rename it into place."""
    digest = hashlib.sha256(data).hexdigest()
    head = b"\n".join((_FORMAT, params.digest.encode(), digest.encode(), b""))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb", buffering=0) as file:
            for part in (memoryview(head), memoryview(data)):
                while part:
                    part = part[file.write(part) :]
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read(path: Path, params: CkksParams) -> bytearray:
    """SEAL's bytes of the key at `path`, after checking owner, mode, format, parameters and digest."""
    with _open(path) as file:
        status = os.fstat(file.fileno())
        _check_private(path, status)
        limit = _HEAD_BYTES + (len(params.primes) + len(params.special)) * params.degree * 9 + 4096
        if not _HEAD_BYTES < status.st_size <= limit:
            raise WireError(
                f"cannot load the secret key {path.name}: got {status.st_size} bytes", Reason.BYTES_TRUNCATED
            )
        head = file.read(_HEAD_BYTES)
        data = bytearray(status.st_size - _HEAD_BYTES)
        filled = file.readinto(data)
    lines = head.split(b"\n")
    if len(lines) != 4 or lines[0] != _FORMAT:
        raise WireError(
            f"cannot load the secret key {path.name}: got an unknown format, need {_FORMAT.decode()!r}",
            Reason.VERSION_UNKNOWN,
        )
    if lines[1] != params.digest.encode():
        raise KeyMismatch(
            f"cannot load the secret key {path.name}: made for other parameters, need {params.digest[:12]}; "
            "try a key of this server and model",
            Reason.KEY_PARAMETERS_DIFFER,
        )
    if filled != len(data) or lines[2] != hashlib.sha256(data).hexdigest().encode():
        raise WireError(f"cannot load the secret key {path.name}: the file is damaged", Reason.DIGEST_MISMATCH)
    return data


def _open(path: Path) -> FileIO:
    try:
        return open(path, "rb", buffering=0, opener=_open_no_link)
    except FileNotFoundError as error:
        raise KeyMismatch(f"cannot load the secret key: no file {path.name}; try generating one") from error
    except OSError as error:
        raise WireError(f"cannot load the secret key {path.name}: {error.strerror}; need your own file") from error


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
        raise WireError(
            f"cannot load secret key {path.name}: mode {stat.S_IMODE(status.st_mode):04o} lets others read it, need "
            "a regular file of mode 0600; try chmod 600, or a new key if others had access"
        )
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        raise WireError(f"cannot load the secret key {path.name}: another user owns it; need a file of your own")
