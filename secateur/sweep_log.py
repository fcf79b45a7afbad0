"""Finished points of a long measurement as JSON lines, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["PointLog"]


class PointLog:
    """The file's first line holds the settings, every further line one finished record.

    Opening a file that is there continues it: `records` are what it holds. A last line that was cut off while it was
    written is dropped. Raises InputError for a file of other settings, and for one that is no such log.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self.records: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = _whole_lines(path)
        if whole:
            first, *self.records = _parsed(path, whole)
            _require_same(path, first.get("settings"), json.loads(json.dumps(settings)))
        else:
            self._write({"settings": dict(settings)})

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record; it is on the disk when this returns."""
        self._write(record)
        self.records.append(dict(record))

    def _write(self, record: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _whole_lines(path: Path) -> list[str]:
    """The file's complete lines; what follows the last newline is cut off the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
    return data[:end].decode("utf-8", errors="replace").splitlines()


def _parsed(path: Path, lines: list[str]) -> list[dict[str, Any]]:
    from he_runtime.errors import InputError

    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise InputError(f"cannot resume {path}: line {number} is no JSON object; try another file, or --restart")
        records.append(record)
    return records


def _require_same(path: Path, old: Any, new: Mapping[str, Any]) -> None:
    from he_runtime.errors import InputError

    if not isinstance(old, dict):
        raise InputError(f"cannot resume {path}: it does not begin with settings; try another file, or --restart")
    for name in dict.fromkeys((*new, *old)):
        if old.get(name) != new.get(name):
            raise InputError(
                f"cannot resume {path}: it was made with {name} {_short(old.get(name))}, not {_short(new.get(name))}; "
                "try another file, or --restart"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
