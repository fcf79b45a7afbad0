"""Where `secateur compress` writes a version of a model: whole or not at all, and refused before anything is trained."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .artifacts import short

__all__ = ["new_version", "unfinished", "written"]

_SERVED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # a server passes over directories of other names


def new_version(root: Path, name: str, version: str, *, overwrite: bool = False) -> Path:
    """Where a version of a model goes: `root`/<name>/<version>/.

    Raises InputError for names that no server would serve, for a version that is there already, and where nothing can be
    written. An old version that a killed run moved away (`written`) is put back first.
    """
    from he_runtime.errors import InputError

    for text in (name, version):
        if not _SERVED_NAME.fullmatch(text):
            raise InputError(
                f"cannot name a model or version {short(text)!r}: need letters, digits, '.', '_' and '-', at most 64, "
                "the first a letter or digit; try another name"
            )
    target = root / name / version
    _put_back(target)
    _need_free(target, overwrite)
    for directory in (unfinished(target), target.parent):
        _need_writable(directory)
    return target


def unfinished(target: Path) -> Path:
    """Where the steps of a version are kept until it is written: a name that no server serves."""
    return target.parent.parent / f".{target.parent.name}-{target.name}.unfinished"


@contextmanager
def written(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """An empty directory to write a version into: a hidden one beside `target`, whose place it takes when the block ends.

    A version that is there already stays whole until then, and is back if the block or the last rename fails; between two
    renames it is gone for a moment. Raises InputError for one that is not to be overwritten, and ModelError
    (STORE_UNAVAILABLE) where something cannot be written.
    """
    from he_runtime.errors import ModelError, Reason

    _clear(target)  # what a killed run left
    _need_free(target, overwrite)
    draft, old = _hidden(target)
    try:
        draft.mkdir(parents=True)
        yield draft
        if os.path.lexists(target):
            target.rename(old)
        draft.rename(target)
    except OSError as error:
        raise ModelError(
            f"cannot write {target}: got {error.strerror or error}, need room and the right to write there; try the same "
            "command again then: it goes on after the last finished step",
            Reason.STORE_UNAVAILABLE,
        ) from error
    finally:
        _clear(target)


def _hidden(target: Path) -> tuple[Path, Path]:
    """Beside a version, by names that no server serves: the next one while it is written, the last one as it goes."""
    return target.with_name(f".{target.name}.writing"), target.with_name(f".{target.name}.replaced")


def _put_back(target: Path) -> None:
    """Return an old version to its place if no new one took it, and that can be done."""
    _, old = _hidden(target)
    if os.path.lexists(old) and not os.path.lexists(target):
        with suppress(OSError):
            old.rename(target)


def _clear(target: Path) -> None:
    """Leave nothing beside a version; only where there is none, and the old one cannot return, that one stays."""
    draft, old = _hidden(target)
    _put_back(target)
    _remove(draft)
    if os.path.lexists(target):
        _remove(old)


def _remove(path: Path) -> None:
    """Remove a directory with all that is in it, or a file or link, if it is there and can be removed."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _need_free(target: Path, overwrite: bool) -> None:
    from he_runtime.errors import InputError

    if os.path.lexists(target) and not overwrite:
        raise InputError(f"cannot write {target}: it is there already; try another --version, or --overwrite")


def _need_writable(directory: Path) -> None:
    """Raise InputError unless a directory, which need not be there yet, takes files; nothing of the trial stays."""
    import tempfile

    from he_runtime.errors import InputError

    absent = [path for path in (directory, *directory.parents) if not os.path.lexists(path)]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write into {short(str(directory))}: got {error.strerror or error}, need a directory that takes files; "
            "try another --out"
        ) from error
    finally:
        with suppress(OSError):
            for path in absent:
                path.rmdir()
