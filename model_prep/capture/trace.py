"""torch.export with a symbolic batch axis, quiet, and with its failures told as one line that names the user's code."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import traceback
import warnings
from collections.abc import Iterator

import torch
from torch import nn

from he_runtime.errors import ModelError, Reason

__all__ = ["source_line", "trace", "unsupported"]

_TORCH_FOLDER = os.path.dirname(os.path.abspath(torch.__file__))
_OWN_FILE = os.path.abspath(__file__)
_LIBRARY = os.path.dirname(os.__file__)


def unsupported(message: str) -> ModelError:
    """The error for a module that has no homomorphic form."""
    return ModelError(f"cannot export {message}", Reason.MODEL_UNSUPPORTED)


def trace(module: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """The functional ATen program of `module` in evaluation mode; the module is left in the mode it was in.

    A batch of one would be taken for a constant, so the example is doubled. Raises ModelError (MODEL_UNSUPPORTED).
    """
    example = torch.cat([example, example]) if len(example) < 2 else example
    modes = [(layer, layer.training) for layer in module.modules()]
    try:
        with _quiet():
            return _export_either_way(module.eval(), example)
    except Exception as error:  # the tracer raises whatever the user's forward raises, and a dozen types of its own
        where = _failed_line(error)
        raise unsupported(
            f"{type(module).__name__}{f' at {where}' if where else ''}: torch.export failed ({_reason(error)}); need a "
            "forward of one tensor whose control flow and reshapes do not depend on the values or on the size of the "
            "batch"
        ) from error
    finally:
        for layer, training in modes:
            layer.training = training


def _export_either_way(module: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    try:
        return _export(module, example, strict=False)
    except Exception:  # plain Python such as len(x) fixes the batch; the slower bytecode tracer sees through it
        return _export(module, example, strict=True)


def _export(module: nn.Module, example: torch.Tensor, *, strict: bool) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=strict)
    functional: torch.export.ExportedProgram = program.run_decompositions({})  # an empty table decomposes nothing
    return functional


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing from torch's own tracer on the terminal: what matters of it is in the error."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _reason(error: Exception) -> str:
    if "Constraints violated (batch)" in str(error):
        return "it works for one size of the batch only"
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _failed_line(error: BaseException | None) -> str:
    """The user's line behind a failure, or behind the failures that led to it."""
    while error is not None:
        # The bytecode tracer has no frame of the user's on the stack, but prints one in its message.
        line = source_line("".join(traceback.format_tb(error.__traceback__))) or source_line(str(error))
        if line:
            return line
        error = error.__context__
    return ""


def source_line(stack: str) -> str:
    """ "file.py:12 `code`" of the innermost frame of a printed stack that is the user's; "" where none is."""
    found = ""
    lines = stack.splitlines()
    for index, line in enumerate(lines):
        if not line.strip().startswith('File "'):
            continue
        path, rest = line.strip()[6:].split('"', 1)
        if _is_users(path):
            number = rest.split("line ", 1)[-1].split(",")[0]
            code = lines[index + 1].strip() if index + 1 < len(lines) else ""
            found = f"{path}:{number} `{code}`"
    return found


def _is_users(path: str) -> bool:
    own = path.startswith((_TORCH_FOLDER, "torch/", _OWN_FILE))
    return not own and ("site-packages" in path or not path.startswith(_LIBRARY))
