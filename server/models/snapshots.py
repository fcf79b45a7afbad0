"""Private copies of model versions, by digest: what workers load from.

A version is copied into `state` before it is verified, and only the copy is ever served. So whatever happens to the operator's
directory afterwards, a version that is served stays what it was when it was verified, also for a worker that starts later.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from ..keys import durable
from . import checksums

__all__ = ["Snapshots"]

_PART = "part-"  # a copy that is not whole yet


class Snapshots:
    """Copies below `directory`, each named by the digest of its version. Methods block on the disk."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory

    def take(self, source: Path, *, require_checksums: bool = False) -> Path:
        """The copy of a version, made unless an intact one is there.

        Raises ModelError (DIGEST_MISMATCH) for files that are not what SHA256SUMS states, OSError when there is no room.
        """
        part = Path(tempfile.mkdtemp(prefix=_PART, dir=self._directory))
        try:
            # What is hashed is the copy: the source may change between two readings of it.
            for path in checksums.tree(source):
                target = part / path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / path, target)
            digests = checksums.file_digests(part)
            checksums.checked(source, digests, required=require_checksums)
            return self._place(part, digests)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _place(self, part: Path, digests: Mapping[str, str]) -> Path:
        """Move a whole copy to its place, or leave the equal one that is there."""
        target = self._directory / checksums.list_digest(digests)
        if target.is_dir():
            if checksums.file_digests(target) == digests:
                return target
            shutil.rmtree(target)
        for name in digests:
            with (part / name).open("rb") as file:
                os.fsync(file.fileno())
        durable.move(part, target)
        return target

    def remove(self, copy: Path, used: Collection[Path]) -> None:
        """Remove a copy, unless an equal version uses it."""
        if copy.parent == self._directory and copy not in used:
            shutil.rmtree(copy, ignore_errors=True)

    def sweep(self, used: Collection[Path]) -> None:
        """Remove what is neither used nor being made."""
        for path in self._directory.iterdir():
            if path.is_dir() and path not in used:
                shutil.rmtree(path, ignore_errors=True)
