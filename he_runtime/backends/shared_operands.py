"""A plan's encoded operands in a file that the worker processes of one machine map, so that they hold them once.

The file is the residues of one operand after the other, as the kernel reads them, and a digest of them at its end. Its
name is the plan's digest, and what lies where follows from the plan. It is written by the first process that needs it,
under a lock and to another name, and never changed afterwards: whoever may write to its directory can make workers give wrong
results or end, so it belongs in a private one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..plan import Plan

__all__ = ["SUFFIX", "SharedOperands", "shapes"]

SUFFIX = ".operands"
_VERSION = 1  # of what the kernel reads: with another, a file of before is another file
_DIGEST_BYTES = 32
_WORD = np.dtype("<u8")

Encode = Callable[[int, "npt.NDArray[np.uint64]"], None]


def shapes(plan: Plan) -> dict[int, tuple[int, int]]:
    """(rows, n) of the residues of each operand that is not one number in all slots, by its index in the plan."""
    special, extended = len(plan.params.special), plan.extended_plaintexts
    return {
        index: (plain.level + 1 + special * (index in extended), plan.params.degree)
        for index, plain in enumerate(plan.plaintexts)
        if len(plan.vectors[plain.vector]) > 1
    }


class SharedOperands:
    """The mapped residues of a plan's operands: `operands[index]` is a read-only array (rows, n)."""

    def __init__(self, words: npt.NDArray[np.uint64], of: dict[int, tuple[int, int]]) -> None:
        self._arrays: dict[int, npt.NDArray[np.uint64]] = {}
        start = 0
        for index, shape in of.items():
            end = start + math.prod(shape)
            self._arrays[index] = words[start:end].reshape(shape)
            start = end

    def __getitem__(self, index: int) -> npt.NDArray[np.uint64]:
        return self._arrays[index]

    def __contains__(self, index: int) -> bool:
        return index in self._arrays

    @classmethod
    def open(cls, directory: Path, plan: Plan, encode: Encode) -> SharedOperands:
        """Map the plan's file below `directory`, made first where it is absent or damaged; OSError for no room or rights.

        `encode` fills an array (rows, n) with the residues of one operand. Processes that come at the same time wait for
        the one that makes the file.
        """
        of = shapes(plan)
        if not of:
            return cls(np.zeros(0, np.uint64), of)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{plan.digest}-{_VERSION}"
        path = directory / (name + SUFFIX)
        with _locked(directory / (name + ".lock")):
            words = _mapped(path, of)
            if words is None:
                _write(path, of, encode)
                words = _mapped(path, of)
        if words is None:
            raise OSError(f"{path.name} does not hold what was written to it")
        return cls(words, of)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _mapped(path: Path, of: dict[int, tuple[int, int]]) -> npt.NDArray[np.uint64] | None:
    """The file's words, if it has the right size and digest."""
    size = sum(map(math.prod, of.values())) * _WORD.itemsize
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        if os.fstat(descriptor).st_size != size + _DIGEST_BYTES:
            return None
        memory = mmap.mmap(descriptor, size + _DIGEST_BYTES, mmap.MAP_SHARED, mmap.PROT_READ)
    finally:
        os.close(descriptor)
    content = memoryview(memory)
    if _hash(content[:size]).digest() != content[size:]:
        return None
    return np.frombuffer(memory, _WORD, size // _WORD.itemsize)


def _write(path: Path, of: dict[int, tuple[int, int]], encode: Encode) -> None:
    """The whole file or none; one operand at a time in memory."""
    digest = _hash()
    descriptor, part = tempfile.mkstemp(prefix="part-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for index, shape in of.items():
                residues = np.empty(shape, _WORD)
                encode(index, residues)
                digest.update(residues.data)
                file.write(residues.data)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


def _hash(content: Any = b"") -> Any:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES)
