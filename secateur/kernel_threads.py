"""How many threads the native kernel computes on: all cores by default, one in a worker and where operations are timed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["kernel_module", "one_thread", "use_threads"]


def kernel_module() -> Any:
    """The built kernel; ImportError without one."""
    return importlib.import_module("he_runtime.kernel._kernel")


def use_threads(count: int) -> None:
    """Let the native kernel use `count` threads from now on."""
    kernel_module().set_threads(count)


@contextmanager
def one_thread(backend: str = "native") -> Iterator[None]:
    """For the length of a block let the back end compute on one thread, as SEAL always does.

    Without a built kernel nothing happens: opening the back end says why it cannot run.
    """
    from he_runtime.kernel import status
    from he_runtime.plan.counts import FUSED

    if backend not in FUSED or not status().available:
        yield
        return
    before = int(kernel_module().threads())
    use_threads(1)
    try:
        yield
    finally:
        use_threads(before)
