"""Copies of a server's state, made while it serves, and put back.

Key files and model versions are named by their content and never change, so they are linked where the file system allows it, else copied.
Databases are copied by SQLite's online backup, which sees one moment of them. Files come before and after the
database: a key set that the copied database records was on the disk at that moment, so it is in the copy, unless it
was deleted in between, and then the next start forgets it. Uploads under way are left out; clients begin those again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from he_runtime.errors import Reason, SecateurError

from ..errors import ConfigError
from .layout import VERSION_FILE, read_version

__all__ = ["BackedUp", "back_up", "restore"]

_INDEX = "BACKUP.json"
_FORMAT = 1
_DATABASE = ".sqlite3"
_IMMUTABLE = ("keys/blobs/", "models/")  # files below these are written once, under another name, and then moved
_LEFT_OUT = ("keys/parts/", "keys/cache/", "operands/")  # uploads under way, and copies of what is elsewhere
_BUSY_SECONDS = 30.0


@dataclass(frozen=True)
class BackedUp:
    """What a backup holds."""

    files: int
    total_bytes: int
    layout_version: int


def back_up(state: Path, target: Path) -> BackedUp:
    """Copy `state` to the new directory `target`; ConfigError when there is no state, or `target` is there already."""
    version = read_version(state)
    if version is None:
        raise ConfigError(f"cannot back up {state}: got no state of a server; try --config or --state")
    try:
        target.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise ConfigError(f"cannot back up to {target}: it is there already; try a new directory") from None
    try:
        _copy(state, target, immutable=True)
        for path in _files(state):
            if path.suffix == _DATABASE:
                _copy_database(state / path, _placed(target, path))
        _copy(state, target, immutable=True)  # what came while the database was copied
        _copy(state, target, immutable=False)
        return _write_index(target, version)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _files(root: Path) -> Iterator[Path]:
    """Relative paths of everything that belongs into a copy. Files may come and go meanwhile."""
    for directory, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = (Path(directory) / name).relative_to(root)
            part = path.suffix == ".part" or any(folder.startswith("part-") for folder in path.parts)
            transient = name in ("lock", "probe", _INDEX) or name.endswith(("-wal", "-shm", "-journal")) or part
            if not transient and not path.as_posix().startswith(_LEFT_OUT):
                yield path


def _copy(state: Path, target: Path, *, immutable: bool) -> None:
    for path in _files(state):
        is_content = path.as_posix().startswith(_IMMUTABLE) and path.name != "defaults.json"
        if path.suffix == _DATABASE or is_content is not immutable:
            continue
        with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
            _take(state / path, _placed(target, path), link=immutable)


def _placed(target: Path, path: Path) -> Path:
    place = target / path
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def _take(source: Path, target: Path, *, link: bool) -> None:
    if target.exists():
        return
    if link:
        try:
            os.link(source, target)
            return
        except FileNotFoundError:
            raise
        except OSError:  # another file system, or one without links
            pass
    _copy_file(source, target)


def _copy_file(source: Path, target: Path) -> None:
    """A copy that is on the disk when this returns."""
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _copy_database(source: Path, target: Path) -> None:
    """One moment of a database that others are writing."""
    with (
        contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=_BUSY_SECONDS)) as live,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        live.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # the copy is one file
        _require_intact(copy, target)


def _require_intact(database: sqlite3.Connection, path: Path) -> None:
    (found,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise SecateurError(f"cannot use {path.name}: the database is damaged ({found[:100]})", Reason.DIGEST_MISMATCH)


def _write_index(target: Path, version: int) -> BackedUp:
    digests = {path.as_posix(): _hash(target / path) for path in _files(target)}
    total = sum((target / name).stat().st_size for name in digests)
    made = BackedUp(len(digests), total, version)
    part = target / (_INDEX + ".part")
    part.write_text(json.dumps({"format": _FORMAT, **vars(made), "sha256": digests}, indent=1))
    os.replace(part, target / _INDEX)  # a backup without an index is not whole
    return made


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def restore(source: Path, state: Path) -> BackedUp:
    """Check every file of the backup `source`, and copy it to `state`, which must be empty or absent.

    Raises ConfigError for a directory that is no backup or of a newer build, or a `state` in use, and SecateurError
    (DIGEST_MISMATCH) for a damaged backup. Nothing is left in `state` then.
    """
    digests, made = _read_index(source)
    if state.is_dir() and any(state.iterdir()):
        raise ConfigError(f"cannot restore to {state}: it is not empty; try moving it away first")
    part = state.with_name(state.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        for name, digest in digests.items():
            target = _placed(part, Path(name))
            _copy_file(source / name, target)
            if _hash(target) != digest:
                raise SecateurError(f"cannot restore: {name} is damaged; try another backup", Reason.DIGEST_MISMATCH)
        read_version(part)
        part.chmod(0o700)
        if state.is_dir():
            state.rmdir()
        os.replace(part, state)
    except FileNotFoundError as error:
        raise SecateurError(
            f"cannot restore: {error.filename} is missing; try another backup", Reason.DIGEST_MISMATCH
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return made


def _read_index(source: Path) -> tuple[dict[str, str], BackedUp]:
    try:
        record = json.loads((source / _INDEX).read_text())
        digests = {str(name): str(digest) for name, digest in record["sha256"].items()}
        made = BackedUp(int(record["files"]), int(record["total_bytes"]), int(record["layout_version"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"cannot restore {source}: got no readable {_INDEX}; try another backup") from error
    outside = [name for name in digests if Path(name).is_absolute() or ".." in Path(name).parts]
    if record.get("format") != _FORMAT or outside or VERSION_FILE not in digests:
        raise ConfigError(f"cannot restore {source}: got a backup of another kind; try the build that made it")
    return digests, made
