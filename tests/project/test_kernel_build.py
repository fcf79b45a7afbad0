"""What hatch_build.py makes of the kernel: a module with a compiler, everything else without one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

KERNEL = "he_runtime/kernel/"
Outcome = subprocess.CompletedProcess[str]


def run(root: Path, *arguments: str, **variables: str) -> Outcome:
    """This Python in the checkout; a variable that is empty is left out."""
    names = ("SECATEUR_REQUIRE_KERNEL", "SECATEUR_NO_KERNEL", "SECATEUR_KERNEL")
    environment = {name: value for name, value in os.environ.items() if name not in names} | variables
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True, check=False
    )


def build(root: Path, target: str, folder: Path, **variables: str) -> Path:
    done = run(root, "-m", "hatchling", "build", "-t", target, "-d", str(folder), **variables)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("secateur-*")
    return path


def recorded(wheel: Path) -> str:
    return zipfile.ZipFile(wheel).read(KERNEL + "absence.txt").decode()


@pytest.fixture
def sources(root: Path, tracked: list[Path], tmp_path: Path) -> Path:
    """A copy of what git tracks of the packages and the build, with nothing built."""
    copy = tmp_path / "sources"
    for path in tracked:
        name = path.relative_to(root)
        if name.parts[0] in {"he_runtime", "recipes"} or len(name.parts) == 1:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy / name)
    return copy


@pytest.mark.slow
def test_with_a_compiler_a_wheel_holds_a_working_module(root: Path, tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    path = build(root, "wheel", tmp_path)
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{tag}-{tag}-" in path.name
    wheel = zipfile.ZipFile(path)
    inside = [n.removeprefix(KERNEL) for n in wheel.namelist() if n.startswith(KERNEL)]
    assert len([n for n in inside if n.startswith("_kernel.") and n.endswith(".so")]) == 1
    assert not [n for n in inside if n.endswith((".cpp", ".hpp", "CMakeLists.txt", "absence.txt"))]
    wheel.extractall(tmp_path / "installed")
    code = "from he_runtime import kernel; print(kernel.__file__); print(kernel.status())"
    done = run(tmp_path, "-c", code, PYTHONPATH=str(tmp_path / "installed"))
    where, status = done.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path / "installed")
    assert "available=True" in status, status


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"CXX": "no-such-compiler"}, r"CXX=no-such-compiler is no program"),
        ({"CXX": "false"}, r"the configuration failed: .*false.* is not able to compile a simple test program"),
        ({"SECATEUR_NO_KERNEL": "1"}, r"left out by SECATEUR_NO_KERNEL"),
    ],
)
def test_without_one_a_wheel_is_pure_and_says_why(
    variables: dict[str, str], reason: str, root: Path, tmp_path: Path
) -> None:
    path = build(root, "wheel", tmp_path, **variables)
    assert path.name.endswith("-py3-none-any.whl")
    assert re.match(reason, recorded(path))
    names = set(zipfile.ZipFile(path).namelist())
    assert KERNEL + "availability.py" in names and not [n for n in names if n.endswith(".so")]


def test_a_required_kernel_that_cannot_be_built_fails_the_build(root: Path, tmp_path: Path) -> None:
    variables = {"CXX": "no-such-compiler", "SECATEUR_REQUIRE_KERNEL": "1"}
    done = run(root, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path), **variables)
    assert done.returncode != 0
    assert "no-such-compiler" in done.stderr
    assert not list(tmp_path.glob("*.whl"))


def test_the_source_distribution_holds_the_sources_and_nothing_built(sources: Path, tmp_path: Path) -> None:
    for name in ("_kernel.cpython-311-x86_64-linux-gnu.so", "absence.txt"):
        (sources / KERNEL / name).write_text("built")
    (sources / "build").mkdir()
    (sources / "build" / "left.cpp").write_text("built")
    (sources / ".gitignore").unlink()  # as where the sources were not taken from git
    path = build(sources, "sdist", tmp_path / "out")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {p.relative_to(sources).as_posix() for p in (sources / KERNEL).glob("*.[ch]pp")}
    assert len(wanted) > 5
    assert wanted | {KERNEL + "CMakeLists.txt", KERNEL + "_kernel.pyi", "hatch_build.py", "pyproject.toml"} <= names
    assert not [n for n in names if n.endswith((".so", "absence.txt")) or n.startswith("build/")]


def test_building_in_place_without_a_compiler(sources: Path) -> None:
    old = (
        sources
        / KERNEL
        / json.loads(
            run(sources, "-c", "import hatch_build, json; print(json.dumps(hatch_build.module_name()))").stdout
        )
    )
    old.write_text("old")
    done = run(sources, "hatch_build.py", CXX="no-such-compiler")
    assert done.returncode == 1
    assert done.stderr == "cannot build the native kernel: CXX=no-such-compiler is no program\n"
    assert old.exists(), "a developer who breaks the build keeps the last module"
    assert run(sources, "hatch_build.py", "--optional", CXX="no-such-compiler").returncode == 0
    assert not old.exists(), "an installation has no module of other sources"
    assert "no-such-compiler" in (sources / KERNEL / "absence.txt").read_text()
    required = run(sources, "hatch_build.py", "--optional", CXX="no-such-compiler", SECATEUR_REQUIRE_KERNEL="1")
    assert required.returncode == 1


@pytest.mark.parametrize(
    ("variables", "asked"),
    [({"CXX": "no-such-compiler"}, []), ({"SECATEUR_NO_KERNEL": "1"}, []), ({"CXX": sys.executable}, ["nanobind"])],
)
def test_build_tools_are_asked_for_only_with_a_compiler(
    variables: dict[str, str], asked: list[str], root: Path
) -> None:
    code = "import hatchling.build, json; print(json.dumps(hatchling.build.get_requires_for_build_wheel()))"
    done = run(root, "-c", code, **variables)
    names = [re.split(r"[^\w-]", requirement)[0] for requirement in json.loads(done.stdout)]
    assert [n for n in names if n not in {"cmake", "ninja"}] == asked
    if not asked:
        assert names == []


def test_the_hook_and_the_extra_ask_for_the_same_versions(root: Path) -> None:
    table = tomllib.loads((root / "pyproject.toml").read_text())
    hook = table["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]
    wanted = [value for key, value in hook.items() if key != "path"]
    assert len(wanted) == 3
    assert set(wanted) <= set(table["project"]["optional-dependencies"]["dev"])
