"""Orion's own Python environment: its pins exclude ours, so a benchmark makes it once in a directory of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .output import say

__all__ = ["ORION", "default_environment", "orion_python"]

ORION = Path(__file__).resolve().parent.parent / "benchmarks" / "orion"  # in a checkout; a wheel does not have it
_PACKAGE = "orion-fhe"
_INSTALL_SECONDS = 1800


def default_environment() -> Path:
    """`.cache/orion-venv` in the checkout."""
    return ORION.parent.parent / ".cache" / "orion-venv"


def orion_python(directory: Path) -> Path:
    """The interpreter of the environment in `directory`, which is made first where it does not hold Orion as pinned.

    Raises BackendUnavailable where it cannot be made: not in a checkout, no package index, no wheel for this Python.
    """
    from he_runtime.errors import BackendUnavailable

    requirements = ORION / "requirements.txt"
    if not requirements.is_file():
        raise BackendUnavailable("cannot run Orion: got an installation without benchmarks/orion; try a checkout")
    python = directory.absolute() / "bin" / "python"
    if _installed(python) != _pinned(requirements):
        say(f"installing Orion into {directory} (once) ...")
        _run([sys.executable, "-m", "venv", "--clear", str(directory)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)])
    return python


def _pinned(requirements: Path) -> str:
    lines = (line.partition("==") for line in requirements.read_text().splitlines())
    return next(version.strip() for name, _, version in lines if name.strip() == _PACKAGE)


def _installed(python: Path) -> str:
    """The version of Orion there, or nothing."""
    ask = f"from importlib.metadata import version; print(version({_PACKAGE!r}))"
    try:
        return subprocess.run([python, "-c", ask], capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _run(command: list[str]) -> None:
    """One step of the installation; BackendUnavailable with the last line of what it said."""
    from he_runtime.errors import BackendUnavailable

    plain = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    try:
        done = subprocess.run(command, env=plain, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendUnavailable(f"cannot install Orion: got {type(error).__name__}; try --no-orion") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["nothing"]
        errors = [line for line in said if line.startswith("ERROR")] or said
        raise BackendUnavailable(f"cannot install Orion: got {errors[-1].strip()!r}; try --no-orion")
