"""The state directory: one version number for its layout, and the steps from each version to the next.

    VERSION      the layout's version
    lock         held by the server that uses the directory
    keys/        clients' evaluation keys and the database about them
    models/      copies of the served model versions, and the defaults that the operator set
    operands/    their weights as workers read them, made again where they are absent; unless `engine.operands` says otherwise
    jobs/        submitted jobs and their results
    audit/       the audit log, unless `audit.directory` says otherwise

A layout of a newer build is refused before anything is touched. A migration ends with its version on disk, so one that was
interrupted is taken up again; hence each step must bear being done twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import ConfigError
from ..keys import durable
from ..observe.logs import event

__all__ = ["MIGRATIONS", "VERSION_FILE", "current_version", "open_state", "read_version"]

VERSION_FILE = "VERSION"
_LOCK = "lock"


def _number_the_layout(state: Path) -> None:
    """0 -> 1: directories of early builds hold the same things and only lack the number."""


MIGRATIONS: dict[int, Callable[[Path], None]] = {0: _number_the_layout}


def current_version(migrations: Mapping[int, Callable[[Path], None]] = MIGRATIONS) -> int:
    """The version that this build reads and writes."""
    return max(migrations) + 1


def read_version(state: Path, newest: int | None = None) -> int | None:
    """The version of a state directory, None for an empty or absent one.

    Raises ConfigError for one that cannot be read, or is newer than `newest` (none: what this build reads).
    """
    newest = current_version() if newest is None else newest
    try:
        text = (state / VERSION_FILE).read_text().strip()
    except FileNotFoundError:
        used = state.is_dir() and any(path.name != _LOCK for path in state.iterdir())
        return 0 if used else None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot use state = {state}: cannot read {VERSION_FILE} ({type(error).__name__})") from error
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"cannot use state = {state}: {VERSION_FILE} holds {text[:20]!r}, need a whole number")
    if int(text) > newest:
        raise ConfigError(
            f"cannot use state = {state}: layout version {text}, this build reads up to {newest}; "
            "try the build that wrote it, or a new `state`"
        )
    return int(text)


def open_state(state: Path, migrations: Mapping[int, Callable[[Path], None]] = MIGRATIONS) -> int:
    """Make or migrate the directory and take it; returns a descriptor that holds the lock until it is closed.

    Raises ConfigError when another server has it, or it cannot be used.
    """
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = durable.own(state / _LOCK)
    except OSError as error:
        raise ConfigError(f"cannot use state = {state}: {error.strerror or error}") from error
    try:
        _migrate(state, migrations)
    except BaseException:
        os.close(owner)
        raise
    return owner


def _migrate(state: Path, migrations: Mapping[int, Callable[[Path], None]]) -> None:
    newest = current_version(migrations)
    found = read_version(state, newest)
    if found is None:
        _write_version(state, newest)
        return
    for version in range(found, newest):
        event("state migrates", state=str(state), to_version=version + 1)
        migrations[version](state)
        _write_version(state, version + 1)


def _write_version(state: Path, version: int) -> None:
    part = state / (VERSION_FILE + ".part")
    with part.open("w") as file:
        file.write(f"{version}\n")
        file.flush()
        os.fsync(file.fileno())
    durable.move(part, state / VERSION_FILE)
