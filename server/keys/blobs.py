"""Where the bytes of key sets are kept: an interface, and its embedded implementation as files.

A blob belongs to one tenant and is named by that tenant and its digest, so the same bytes of two tenants are two blobs:
nobody learns from a time or an answer what another has stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from . import durable

__all__ = ["Blobs", "FileBlobs", "blob_name"]

_TENANT_CHARS = 32


def blob_name(tenant: str, sha256: str) -> str:
    """<digest of the tenant>/<sha256>: tenants' names need not be file names."""
    return f"{hashlib.sha256(tenant.encode()).hexdigest()[:_TENANT_CHARS]}/{sha256}"


class Blobs(Protocol):
    """Bytes by name. Thread-safe; methods block. Raises OSError for the disk, ServiceError (STORE_UNAVAILABLE) where a
    remote store cannot be reached.

    A commit is `send`, which may take long and makes nothing visible, `place`, which is quick, and then the database;
    `restore` undoes `place` where the database has no record of it.
    """

    def send(self, part: Path, name: str) -> None:
        """Bring a complete part to where `place` needs it."""

    def place(self, part: Path, name: str) -> None:
        """Make it a blob; FileNotFoundError where the part is no more."""

    def restore(self, part: Path, name: str) -> None:
        """Make it a part again, if it is none: what `place` did is undone, once or twice."""

    def local(self, name: str, sha256: str) -> Path:
        """A file with a blob's bytes for a worker to open soon; FileNotFoundError where the blob is lost or damaged."""

    def is_local(self, name: str) -> bool:
        """Whether `local` would have to fetch nothing."""

    def exists(self, name: str) -> bool: ...

    def delete(self, name: str) -> None:
        """Blob and local copies; nothing where there is none. The freed blocks are not overwritten."""

    def names(self) -> Iterator[str]: ...

    def check(self) -> None:
        """Raise unless the store answers."""

    def close(self) -> None: ...


class FileBlobs:
    """Files in <directory>/<tenant>/<sha256>, which workers read where they lie."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        durable.make_directory(directory)

    def send(self, part: Path, name: str) -> None:
        """Nothing to do: part and blob are on one file system."""

    def place(self, part: Path, name: str) -> None:
        target = self._directory / name
        durable.make_directory(target.parent)
        durable.move(part, target)

    def restore(self, part: Path, name: str) -> None:
        if not part.exists() and self.exists(name):
            durable.move(self._directory / name, part)

    def adopt(self, sha256: str, name: str) -> None:
        """Take over a file of the first schema, which knew no tenants."""
        old = self._directory / sha256
        if old.is_file():
            self.place(old, name)

    def local(self, name: str, sha256: str) -> Path:
        path = self._directory / name
        if not path.is_file():
            raise FileNotFoundError(name)
        return path

    def is_local(self, name: str) -> bool:
        return self.exists(name)

    def exists(self, name: str) -> bool:
        return (self._directory / name).is_file()

    def delete(self, name: str) -> None:
        if (self._directory / name).parent.is_dir():
            durable.remove(self._directory / name)

    def names(self) -> Iterator[str]:
        for path in sorted(self._directory.rglob("*")):
            if path.is_file():
                yield str(path.relative_to(self._directory))

    def check(self) -> None:
        """The key store probes the disk, which the part files share."""

    def close(self) -> None: ...
