"""How a command fails: one line on standard error and a non-zero exit code, never a traceback."""

from __future__ import annotations

import os
from typing import Any

import typer
from typer.core import TyperGroup

from .output import say

__all__ = ["OneLineErrors"]

TRACEBACK_VARIABLE = "SECATEUR_TRACEBACK"  # set it to see where an unexpected error came from

# What the framework itself reports: its way out, its usage errors, and a reader (`| head`) that has seen enough.
_USAGE_ERRORS = [k for k in typer.BadParameter.__mro__ if issubclass(k, Exception) and k.__name__ == "ClickException"]
_FRAMEWORK: tuple[type[BaseException], ...] = (typer.Exit, typer.Abort, BrokenPipeError, *_USAGE_ERRORS)

# Module that may be missing -> the extra of this distribution that brings it.
_EXTRAS = {
    "torch": "prep",
    "sklearn": "prep",
    "tenseal": "client",
    "platformdirs": "client",
    "grpc": "client",
    "grpc_status": "client",
    "google": "client",
    "zstandard": "client",
    "cryptography": "server",
    "jwt": "server",
    "grpc_health": "server",
    "grpc_reflection": "server",
    "Pyfhel": "pyfhel",
}


class OneLineErrors(TyperGroup):
    """A group of commands that ends with one line on standard error and exit code 1 instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _FRAMEWORK:
            raise
        except Exception as error:
            if os.environ.get(TRACEBACK_VARIABLE):
                raise
            say("error: " + " ".join(_message(error).split()))
            raise typer.Exit(1) from None


def _message(error: Exception) -> str:
    """What an error tells a person."""
    from he_runtime.errors import SecateurError

    if isinstance(error, SecateurError):
        return error.message
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
        if module in _EXTRAS:
            return f"cannot run: {module} is not installed; try pip install 'secateur[{_EXTRAS[module]}]'"
    if isinstance(error, OSError):
        return f"cannot run: {error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    return f"cannot run: unexpected {type(error).__name__}; set {TRACEBACK_VARIABLE}=1 and report what it shows"
