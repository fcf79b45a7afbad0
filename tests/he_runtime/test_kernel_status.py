"""he_runtime.kernel.status: never raises, and tells the real reason."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from he_runtime import kernel

MODULE = "he_runtime.kernel._kernel"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder without a module in it."""
    monkeypatch.setattr("he_runtime.kernel.availability._FOLDER", tmp_path)
    monkeypatch.setitem(sys.modules, MODULE, None)
    return tmp_path


def test_it_is_what_the_module_says() -> None:
    found = kernel.status()
    try:
        module: Any = importlib.import_module(MODULE)
    except ImportError:
        assert os.environ.get("SECATEUR_REQUIRE_KERNEL") != "1"
        assert (found.available, found.path, found.paths) == (False, None, ()) and found.reason
    else:
        assert found == kernel.KernelStatus(True, module.default_path(), None, tuple(module.paths()))
        assert found.path in found.paths


def test_without_a_build_it_says_so(folder: Path) -> None:
    found = kernel.status()
    assert (found.available, found.path, found.reason) == (False, None, "not built")
    assert "compiler" in str(found.remedy)


def test_the_reason_of_the_installation_is_handed_on(folder: Path) -> None:
    (folder / "absence.txt").write_text("no C++ compiler\n")
    assert kernel.status().reason == "not built at installation: no C++ compiler"


def test_a_module_of_another_python_is_named(folder: Path) -> None:
    (folder / "_kernel.cpython-399-x86_64-linux-gnu.so").touch()
    reason = kernel.status().reason
    assert reason == "built for another Python only (_kernel.cpython-399-x86_64-linux-gnu.so)"


@pytest.mark.parametrize("error", [ImportError("undefined symbol"), ModuleNotFoundError("no numpy", name="numpy")])
def test_what_fails_inside_the_module_is_the_reason(error: ImportError, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        assert name == MODULE
        raise error

    monkeypatch.setattr("he_runtime.kernel.availability.importlib.import_module", load)
    found = kernel.status()
    assert (found.available, found.reason, found.remedy) == (False, str(error), None)


def test_a_path_that_the_machine_lacks_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def default_path() -> str:
        raise ValueError("cannot use SECATEUR_KERNEL=ifma")

    monkeypatch.setitem(sys.modules, MODULE, SimpleNamespace(default_path=default_path))
    assert kernel.status() == kernel.KernelStatus(False, None, "cannot use SECATEUR_KERNEL=ifma")


def test_a_forced_path_that_does_not_exist_is_no_crash() -> None:
    code = "from he_runtime import kernel; print(kernel.status().available)"
    environment = {**os.environ, "SECATEUR_KERNEL": "abacus", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
