"""What importing a package loads, seen from a fresh interpreter, and what the import contracts forbid."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("model_prep", "he_runtime", "client", "server", "protos", "secateur")
OPTIONAL = ("server.scale.ray_replica",)  # loaded by Ray's own processes, which alone need that extra
WALK = """
import importlib, json, pkgutil, sys
for blocked in {blocked!r}:
    sys.modules[blocked] = None
package = importlib.import_module({package!r})
if {whole!r}:
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name not in {optional!r}:
            importlib.import_module(module.name)
print(json.dumps(sorted(m for m, loaded in sys.modules.items() if loaded is not None)))
"""


def loaded(root: Path, package: str, *, whole: bool = False, blocked: tuple[str, ...] = ()) -> set[str]:
    """Top-level names of the modules that importing `package` (or, if `whole`, every module in it) loads."""
    script = WALK.format(package=package, whole=whole, blocked=blocked, optional=OPTIONAL)
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


@pytest.mark.parametrize(
    ("package", "absent"),
    [
        ("client", {"torch", "tenseal", "grpc", "Pyfhel"}),
        ("server", {"torch", "tenseal", "grpc", "Pyfhel", "client"}),
        ("he_runtime", {"torch", "tenseal", "grpc", "Pyfhel", "google"}),
        ("protos", {"torch", "tenseal", "grpc"}),
        ("secateur", {"torch", "tenseal", "grpc"}),
    ],
)
def test_importing_a_package_is_light(root: Path, package: str, absent: set[str]) -> None:
    assert not loaded(root, package) & absent


@pytest.mark.parametrize(
    ("package", "absent"), [("client", {"torch"}), ("server", {"torch", "client"}), ("he_runtime", {"torch", "grpc"})]
)
def test_no_module_of_a_package_loads_what_the_design_forbids(root: Path, package: str, absent: set[str]) -> None:
    assert not loaded(root, package, whole=True) & absent


def test_importing_the_runtime_leaves_out_what_takes_longest(root: Path) -> None:
    script = WALK.format(package="he_runtime", whole=False, blocked=(), optional=OPTIONAL)
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert not {"scipy.special", "scipy.optimize", "scipy.stats"} & set(json.loads(done.stdout))


def test_every_module_of_the_runtime_imports_without_an_he_library(root: Path) -> None:
    names = loaded(root, "he_runtime", whole=True, blocked=("tenseal", "Pyfhel", "torch", "grpc", "zstandard"))
    assert "he_runtime" in names


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    tool = Path(sys.executable).parent / "lint-imports"
    return subprocess.run([tool, "--no-cache"], cwd=directory, capture_output=True, text=True, check=False)


def test_import_contracts_hold(root: Path) -> None:
    done = lint(root)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("package", "line", "broken"),
    [
        ("server", "from he_runtime.backends import tenseal_secret", "server holds no secret and no torch"),
        ("he_runtime/wire", "import torch", "server holds no secret and no torch"),
        ("protos", "import he_runtime", "protos imports nothing of ours"),
        ("he_runtime", "import grpc", "he_runtime imports nothing of ours, no torch and no grpc"),
        ("client", "import server", "Imports point one way"),
    ],
)
def test_import_contracts_catch_a_violation(root: Path, tmp_path: Path, package: str, line: str, broken: str) -> None:
    for name in PACKAGES:
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    (tmp_path / package / "planted.py").write_text(line + "\n")
    init = tmp_path / package / "__init__.py"
    init.write_text(init.read_text() + f"\nfrom {package.replace('/', '.')} import planted\n")
    done = lint(tmp_path)
    report = " ".join(done.stdout.split())
    assert done.returncode != 0
    assert f"{broken}" in report and "BROKEN" in report.split(broken, 1)[1].split("KEPT")[0]
