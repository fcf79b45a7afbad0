"""Whether the compiled kernel is there and, if not, why."""

from __future__ import annotations

import importlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["KernelStatus", "status"]

_MODULE = f"{__package__}._kernel"
_FOLDER = Path(__file__).parent
_ABSENCE = "absence.txt"  # written by the build, see hatch_build.py
_REMEDY = "installing again where a C++17 compiler is, or make kernel in a checkout"


@dataclass(frozen=True)
class KernelStatus:
    """`path` is the set of routines in use, `paths` all that this machine can run; `reason` says why there is none.

    `remedy` follows "try" where something other than the reason itself has to be told.
    """

    available: bool
    path: str | None
    reason: str | None
    paths: tuple[str, ...] = ()
    remedy: str | None = None


def status() -> KernelStatus:
    """Load the kernel and say what it will use; whatever goes wrong becomes the reason. Never raises."""
    try:
        module: Any = importlib.import_module(_MODULE)
        return KernelStatus(True, str(module.default_path()), None, tuple(map(str, module.paths())))
    except ModuleNotFoundError as error:
        if error.name != _MODULE:
            return KernelStatus(False, None, str(error))
        return KernelStatus(False, None, _not_built(), remedy=_REMEDY)
    except Exception as error:  # a library of another machine, a forced path that this CPU lacks
        return KernelStatus(False, None, str(error) or type(error).__name__)


def _not_built() -> str:
    with suppress(OSError):
        if recorded := (_FOLDER / _ABSENCE).read_text().strip():
            return f"not built at installation: {recorded}"
    others = sorted(_FOLDER.glob("_kernel.*.so"))
    return f"built for another Python only ({others[0].name})" if others else "not built"
