"""Evaluators. One registry row per backend; importing this package loads no HE library."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ..errors import BackendUnavailable
from ..kernel import status
from ..plan import Plan

__all__ = ["BACKENDS", "LIBRARIES", "default_backend", "open_backend"]

# name -> (module, class). A backend class takes a Plan, encodes its plaintexts, loads keys and makes evaluators.
BACKENDS: dict[str, tuple[str, str]] = {
    "tenseal": (".tenseal", "TensealBackend"),
    "pyfhel": (".pyfhel", "PyfhelBackend"),
    "native": (".native", "NativeBackend"),
}

# name -> the module that it needs
LIBRARIES = {"tenseal": "tenseal", "pyfhel": "Pyfhel", "native": "he_runtime.kernel._kernel"}


def default_backend() -> str:
    """`native` where the kernel is built, else `tenseal`."""
    return "native" if status().available else "tenseal"


SHARING = frozenset({"native"})  # backends that can map encoded plaintexts from a file


def open_backend(name: str, plan: Plan, share: Path | None = None) -> Any:
    """A backend bound to `plan`; BackendUnavailable for an unknown name or a missing library.

    `share` is a private directory for encoded plaintexts that processes of this machine share, where the backend can.
    """
    if name not in BACKENDS:
        raise BackendUnavailable(f"cannot use backend {name!r}: need one of {sorted(BACKENDS)}")
    module, attribute = BACKENDS[name]
    options = {"share": share} if share is not None and name in SHARING else {}
    return getattr(importlib.import_module(module, __package__), attribute)(plan, **options)
