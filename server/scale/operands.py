"""Where the workers of this machine share encoded weights, so that memory does not grow with their number."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..config import ServerConfig
from ..engine.runtime import ModelDescription
from ..observe.logs import event

__all__ = ["prepare"]

_OURS = re.compile(r"([0-9a-f]{64})-\d+\.(?:operands|lock)|part-\w+")


def prepare(config: ServerConfig, served: Iterable[ModelDescription]) -> Path | None:
    """The directory for the operands of all models, without files of models that are no longer served.

    None where it cannot be used, or others may write to it: each worker then has its own.
    """
    directory = config.engine.operands or config.state / "operands"
    plans = {model.plan_digest for model in served}
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_uid == os.geteuid() and directory.stat().st_mode & 0o022 == 0:
            _sweep(directory, plans)
            return directory
        cause = "others may write to it"
    except OSError as error:
        cause = error.strerror or str(error)
    event("operands not shared", level=logging.WARNING, directory=str(directory), cause=cause)
    return None


def _sweep(directory: Path, plans: set[str]) -> None:
    """Remove what belongs to no served plan, and what was never finished. Nothing else runs in the directory yet."""
    for path in directory.iterdir():
        found = _OURS.fullmatch(path.name)
        if found and found[1] not in plans:
            with contextlib.suppress(OSError):
                path.unlink()
