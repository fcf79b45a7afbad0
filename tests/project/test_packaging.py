"""The distribution: dependencies against constraints, the wheel's contents, and what must never be in a tracked file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PACKAGES = ("model_prep", "he_runtime", "client", "server", "protos", "secateur")
# Spelled in pieces, so that this file passes its own test.
IMAGE_PATH = re.compile(r"/(?:opt/secateur|tmp)\b")
MACHINE_PATH = re.compile(
    r"(?<![\w./$}])/(?:" + "|".join(("work", "root", "home/[a-z]", "tmp", "opt")) + r")(?![\w-])/?"
)
REGISTRY_HOST = re.compile(r"\b(?:" + "|".join(("pypi", "pythonhosted", "anaconda")) + r")\.org|index-" + "url", re.I)


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())
    return table


@pytest.fixture(scope="module")
def constraints(root: Path) -> dict[str, Version]:
    lines = (root / "constraints.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pins}


def direct(project: dict[str, Any]) -> list[Requirement]:
    table = project["project"]
    groups = [table["dependencies"], *table["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def test_every_direct_dependency_is_pinned_inside_its_range(
    project: dict[str, Any], constraints: dict[str, Version]
) -> None:
    requirements = direct(project)
    assert requirements
    for requirement in requirements:
        pin = constraints.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} has no exact version in constraints.txt"
        assert pin in requirement.specifier, f"{requirement.name}: {pin} is outside {requirement.specifier}"


def test_constraints_are_exact_sorted_out_and_without_local_labels(root: Path, constraints: dict[str, Version]) -> None:
    lines = [x for x in (root / "constraints.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert len(lines) == len(constraints), "a package is pinned twice"
    assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", line) for line in lines)
    assert constraints["torch"] == Version("2.13.0")


def test_every_direct_dependency_has_a_reason(root: Path) -> None:
    text = (root / "pyproject.toml").read_text()
    section = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    entries = [line for line in section.splitlines() if re.search(r'"[\w-]+(?:>=|==)', line)]
    assert entries
    assert not [line for line in entries if not re.search(r"# \S+", line)]


def test_names_version_and_licence(root: Path, project: dict[str, Any]) -> None:
    table = project["project"]
    assert table["name"] == "secateur"
    assert table["requires-python"] == ">=3.11"
    assert table["license"] == "Apache-2.0"
    licence = (root / "LICENSE").read_text()
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence
    assert "## [Unreleased]" in (root / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    # Without the kernel, whose compilation test_kernel_build.py looks at: all else has to be there all the same.
    environment = {**os.environ, "SECATEUR_NO_KERNEL": "1", "SECATEUR_REQUIRE_KERNEL": "0"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = target.glob("secateur-*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_package_with_its_data(root: Path, wheel: zipfile.ZipFile, tracked: list[Path]) -> None:
    names = set(wheel.namelist())
    inside = [f.relative_to(root).as_posix() for f in tracked if f.relative_to(root).parts[0] in PACKAGES]
    data = [n for n in inside if n.endswith((".py", ".pyi", ".proto", ".json", "py.typed"))]
    assert {n.partition("/")[0] for n in data} == set(PACKAGES)
    assert not set(data) - names
    assert all(f"{package}/py.typed" in names for package in PACKAGES)


def test_the_wheel_holds_recipes_licence_and_command(root: Path, wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    recipes = {path.name for path in (root / "recipes").glob("*.toml")}
    assert recipes == {Path(n).name for n in names if "/share/secateur/recipes/" in n and n.endswith(".toml")}
    assert any(n.endswith("licenses/LICENSE") for n in names)
    (entry,) = (n for n in names if n.endswith("entry_points.txt"))
    assert "secateur = secateur.main:app" in wheel.read(entry).decode()


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {n.partition("/")[0] for n in wheel.namelist()}
    assert {t for t in tops if not t.startswith("secateur-")} == set(PACKAGES)


def test_no_machine_path_and_no_registry_host_in_tracked_files(root: Path, tracked: list[Path]) -> None:
    findings = []
    for path in tracked:
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            ours = path.is_relative_to(root / "deploy") and IMAGE_PATH.sub("", line)  # of a container that we lay out
            if MACHINE_PATH.search(ours or line) or REGISTRY_HOST.search(line):
                findings.append(f"{path.relative_to(root)}:{number}: {line.strip()[:100]}")
    assert not findings, "\n".join(findings)


@pytest.mark.parametrize("line", ['open("/ro' + 'ot/x")', "see /wo" + "rk/main", "https://py" + "pi.org/simple"])
def test_the_patterns_find_what_they_are_for(line: str) -> None:
    assert MACHINE_PATH.search(line) or REGISTRY_HOST.search(line)
