"""`secateur admin seal`, `backup` and `restore`: what an administrator does to directories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json
from .output import emit

__all__ = ["backup", "restore", "seal"]

_Config = Annotated[Path | None, typer.Option(help="The server's configuration file, for its `state`.")]
_State = Annotated[Path | None, typer.Option(help="The server's state directory, instead of the configured one.")]


def seal(
    directory: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A version: models/NAME/VERSION.")],
    as_json: Json = False,
) -> None:
    """Write SHA256SUMS into a model version, which servers then insist on; `sha256sum -c` checks it too."""
    from server.models.checksums import list_digest, write_list

    digests = write_list(directory)
    record = {"directory": str(directory), "files": len(digests), "digest": list_digest(digests)}
    emit(record, as_json, lambda console: console.print(f"{len(digests)} files, digest {record['digest']}"))


def backup(
    target: Annotated[Path, typer.Argument(help="Where the copy goes; must not exist.")],
    config: _Config = None,
    state: _State = None,
    as_json: Json = False,
) -> None:
    """Copy a server's state, also while it serves. Key files are linked where the file system allows it."""
    from server.state.backup import back_up

    made = back_up(_state(config, state), target)
    said = f"{made.files} files, {made.total_bytes:,} bytes in {target}"
    emit(vars(made), as_json, lambda console: console.print(said, soft_wrap=True))


def restore(
    source: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A directory that `backup` made.")],
    config: _Config = None,
    state: _State = None,
    as_json: Json = False,
) -> None:
    """Check a backup and copy it to an empty state directory, for a server that does not run."""
    from server.state.backup import restore as restore_state

    target = _state(config, state)
    made = restore_state(source, target)
    said = f"{made.files} files, {made.total_bytes:,} bytes in {target}"
    emit(vars(made), as_json, lambda console: console.print(said, soft_wrap=True))


def _state(config: Path | None, state: Path | None) -> Path:
    if state is not None:
        return state
    from server import load_config

    return load_config(config).state
