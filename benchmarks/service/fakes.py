"""A server in a process of its own on the tests' runtime without an HE library: for figures of the service alone."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.running import RunningServer, start_subprocess

__all__ = ["PARAMS", "fake_server", "spec_digest", "tests_module", "write_config"]

PARAMS = "11" * 32
_RUNTIME = Path(__file__).resolve().parents[2] / "tests" / "server"


def spec_digest() -> str:
    """Of the one model's client spec, as the fake runtime describes it."""
    return hashlib.sha256(b"spec of digits 1").hexdigest()


def _reach_tests() -> None:
    if str(_RUNTIME) not in sys.path:
        sys.path.append(str(_RUNTIME))


def tests_module(name: str) -> Any:
    """A helper module of the server's tests."""
    _reach_tests()
    return importlib.import_module(name)


def write_config(directory: Path, sections: Mapping[str, Mapping[str, Any]] | None = None) -> Path:
    """A configuration on `directory` with one model `digits`; `sections` override or add tables."""
    _reach_tests()  # whoever starts the server hands the path on
    model = directory / "models" / "digits" / "1"
    model.mkdir(parents=True, exist_ok=True)
    (model / "model.json").write_text(json.dumps({"params": PARAMS, "max_key_bytes": 1 << 34}))
    tables: dict[str, dict[str, Any]] = {
        "limits": {"max_upload_bytes": 4 << 30},
        "keys": {"validate_on_commit": False},
        "engine": {"backend": "fake", "runtime": "fake_runtime"},
    }
    for name, table in (sections or {}).items():
        tables[name] = {**tables.get(name, {}), **table}
    lines = ['address = "127.0.0.1:0"', 'log_level = "error"', 'models = "models"', 'state = "state"']
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    path = directory / "server.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def fake_server(
    directory: Path,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
    environment: Mapping[str, str] | None = None,
) -> RunningServer:
    """Up and serving; a context manager that stops it."""
    directory.mkdir(parents=True, exist_ok=True)
    return start_subprocess(write_config(directory, sections), environment)
