"""`secateur doctor`: what is installed, and whether encryption works here."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import typer

from .output import Json, emit

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["doctor"]

# distribution -> (what needs it, the extra that brings it; empty: always required)
_LIBRARIES: dict[str, tuple[str, str]] = {
    "numpy": ("everything", ""),
    "scipy": ("everything", ""),
    "safetensors": ("models and plans on disk", ""),
    "tenseal": ("keys, encryption, the tenseal back end", "client"),
    "grpcio": ("client and server", "client"),
    "grpcio-status": ("typed errors from a server", "client"),
    "platformdirs": ("where secret keys lie", "client"),
    "grpcio-health-checking": ("the server's health service", "server"),
    "grpcio-reflection": ("the server's reflection service", "server"),
    "cryptography": ("TLS certificates", "server"),
    "torch": ("compress and demo", "prep"),
    "scikit-learn": ("the digits data", "prep"),
    "Pyfhel": ("the pyfhel back end", "pyfhel"),
}
_OPTIONAL = frozenset({"Pyfhel"})  # demo, tests and service do without


@dataclass(frozen=True)
class _Check:
    """One finding. `required` is whether the installation is broken without it."""

    name: str
    ok: bool
    detail: str
    required: bool = True


def doctor(as_json: Json = False) -> None:
    """Check the installation: Python, libraries, back ends, and one encryption. Exit code 1 if something is broken."""
    checks = [_python(), *(_library(name) for name in _LIBRARIES), *_backends(), _round_trip()]
    healthy = all(check.ok for check in checks if check.required)
    machine = {"system": platform.platform(), "cores": os.cpu_count() or 1}

    def render(console: Console) -> None:
        from rich.table import Table

        table = Table(title=f"{machine['system']}, {machine['cores']} cores", title_justify="left", pad_edge=False)
        for column in ("check", "", "finding"):
            table.add_column(column)
        for check in checks:
            mark = "ok" if check.ok else ("MISSING" if check.required else "absent")
            table.add_row(check.name, mark, check.detail)
        console.print(table)
        console.print("ready" if healthy else "not ready: see the lines marked MISSING")

    emit({"ok": healthy, **machine, "checks": [asdict(check) for check in checks]}, as_json, render)
    if not healthy:
        raise typer.Exit(1)


def _python() -> _Check:
    version = platform.python_version()
    return _Check("python", sys.version_info >= (3, 11), f"{version} (need 3.11 or newer)")


def _library(name: str) -> _Check:
    purpose, extra = _LIBRARIES[name]
    try:
        return _Check(name, True, f"{metadata.version(name)}: {purpose}", name not in _OPTIONAL)
    except metadata.PackageNotFoundError:
        command = f"pip install 'secateur[{extra}]'" if extra else "pip install secateur"
        return _Check(name, False, f"{purpose}; try {command}", name not in _OPTIONAL)


def _backends() -> list[_Check]:
    """Whether the module behind every back end loads."""
    import importlib

    from he_runtime.backends import BACKENDS

    found = []
    for name, (module, _) in BACKENDS.items():
        try:
            importlib.import_module(module, "he_runtime.backends")
            found.append(_Check(f"back end {name}", True, "loads", name != "pyfhel"))
        except Exception as error:
            found.append(_Check(f"back end {name}", False, str(error) or type(error).__name__, name != "pyfhel"))
    return found


def _round_trip() -> _Check:
    """Encrypt a vector and decrypt it at N = 4096: the smallest thing that needs SEAL to work."""
    name = "encryption"
    try:
        import numpy as np

        from he_runtime.backends.tenseal_secret import SecretKey
        from he_runtime.params import CkksParams, find_primes

        special, live = find_primes(4096, [53.0, 52.0])
        secret = SecretKey.generate(CkksParams(4096, (live,), (special,)))
        values = np.linspace(-1.0, 1.0, secret.params.slots)
        error = float(np.abs(secret.decrypt(secret.encrypt(values, 0, 2.0**30)) - values).max())
    except Exception as failure:
        return _Check(name, False, f"failed: {type(failure).__name__}: {failure}")
    return _Check(name, error < 2.0**-12, "a round trip at N=4096 " + ("works" if error < 2.0**-12 else "is wrong"))
