"""`secateur doctor`: what is installed, and whether encrypted evaluation works here."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Literal

import typer

from .options import Json
from .output import emit, table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["doctor"]

_ROLES = ("prep", "client", "server", "pyfhel")  # extras of the distribution that a user may do without


@dataclass(frozen=True)
class _Check:
    """One finding. What is absent was not asked for; what is broken cannot work as it is."""

    name: str
    status: Literal["ok", "absent", "broken"]
    detail: str


def doctor(as_json: Json = False) -> None:
    """Check the installation; exit code 1 if something is broken.

    Python, the libraries of every extra, the native kernel, and one encrypted evaluation on each back end. An extra that
    is not installed is absent, not broken, and so is the kernel.
    """
    checks = [_python(), *_libraries(), _kernel(), *_backends()]
    healthy = all(check.status != "broken" for check in checks)
    ready = [check.name for check in checks if check.name in _ROLES and check.status == "ok"]
    machine = {"system": platform.platform(), "cores": os.cpu_count() or 1}

    def render(console: Console) -> None:
        drawn = table(("check", "", "finding"), f"{machine['system']}, {machine['cores']} cores", text_columns=3)
        for check in checks:
            drawn.add_row(check.name, check.status, check.detail)
        console.print(drawn)
        console.print()
        console.print(f"ready for: {', '.join(ready) or 'nothing'}" if healthy else "broken: see above")

    emit({"ok": healthy, "ready": ready, **machine, "checks": [asdict(check) for check in checks]}, as_json, render)
    if not healthy:
        raise typer.Exit(1)


def _python() -> _Check:
    status: Literal["ok", "broken"] = "ok" if sys.version_info >= (3, 11) else "broken"
    return _Check("python", status, f"{platform.python_version()} (need 3.11 or newer)")


def _libraries() -> list[_Check]:
    """One finding for what is always needed, and one per extra."""
    try:
        requirements = metadata.requires("secateur") or []
    except metadata.PackageNotFoundError:
        return [_Check("libraries", "broken", "secateur itself is not installed; try pip install secateur")]
    wanted: dict[str, list[str]] = {"base": [], **{role: [] for role in _ROLES}}
    for requirement in requirements:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra *== *['\"]([^'\"]+)", requirement)
        role = extra[1] if extra else "base"
        if role in wanted:
            wanted[role].append(name)
    return [_extra(role, names) for role, names in wanted.items()]


def _extra(role: str, names: list[str]) -> _Check:
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if not missing:
        return _Check(role, "ok", ", ".join(found))
    package = "secateur" if role == "base" else f"'secateur[{role}]'"
    status: Literal["absent", "broken"] = "broken" if role == "base" else "absent"
    return _Check(role, status, f"without {', '.join(missing)}; try pip install {package}")


def _kernel() -> _Check:
    """Whether the compiled kernel is there, and which of its instruction paths this machine takes."""
    from he_runtime import kernel

    found = kernel.status()
    if found.available:
        return _Check("native kernel", "ok", f"path {found.path} (of {', '.join(found.paths)})")
    remedy = f"; try {found.remedy}" if found.remedy else ""
    return _Check("native kernel", "absent", f"{found.reason}; the tenseal backend will be used{remedy}")


def _backends() -> list[_Check]:
    """Whether every back end evaluates a small encrypted network as in the clear."""
    from he_runtime.backends import BACKENDS
    from he_runtime.errors import BackendUnavailable

    found = []
    for backend in BACKENDS:
        name = f"back end {backend}"
        try:
            found.append(_Check(name, *_evaluate(backend)))
        except (BackendUnavailable, ModuleNotFoundError) as error:
            found.append(_Check(name, "absent", str(error)))
        except Exception as error:
            found.append(_Check(name, "broken", f"{type(error).__name__}: {error}"))
    return found


def _evaluate(backend: str) -> tuple[Literal["ok", "broken"], str]:
    """Encrypt, multiply by a matrix, decrypt: the smallest thing that needs all of a back end."""
    import numpy as np

    from he_runtime import CompressedModel, compile, run_clear
    from he_runtime.model import InputSpec, Node, OutputSpec
    from he_runtime.reference import calibrate

    from .local import Local

    rng = np.random.default_rng(0)
    samples = rng.uniform(-1.0, 1.0, size=(32, 8))
    layer = Node("layer", "dense", ("x",), (8,), arrays={"weight": "weight"})
    arrays = {"weight": rng.normal(size=(8, 8))}
    model = CompressedModel("doctor", InputSpec("x", (8,)), OutputSpec("layer"), (layer,), arrays)
    planned = compile(calibrate(model, samples))
    local = Local(planned, backend)
    answer = local.decrypt(local.evaluate(local.encrypt(samples[0])))
    if np.abs(answer - run_clear(planned, samples[:1])[0]).max() > planned.error_bound:
        return "broken", "an encrypted product is not what it is in the clear"
    return "ok", f"evaluates an encrypted product at N={planned.params.degree} as in the clear"
