"""The built kernel and the paths that this machine can run; without a build these tests are skipped."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest

MODULE = "he_runtime.kernel._kernel"


@pytest.fixture(scope="session")
def kernel() -> Any:
    try:
        return importlib.import_module(MODULE)
    except ImportError:
        if os.environ.get("SECATEUR_REQUIRE_KERNEL") == "1":
            raise
        pytest.skip("the kernel is not built; see he_runtime/kernel/CMakeLists.txt")


@pytest.fixture(scope="session")
def paths(kernel: Any) -> list[str]:
    available: list[str] = kernel.paths()
    assert available[0] == "portable"
    return available
