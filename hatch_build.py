"""Build hook: compiles the native kernel (he_runtime/kernel) where a C++ compiler is, and goes without it elsewhere.

`python hatch_build.py` builds it for the checkout, next to its sources; `make kernel` and `make sanitize` call this.
Two variables of the environment steer every build: SECATEUR_NO_KERNEL=1 leaves the kernel out and asks for no build
tools; SECATEUR_REQUIRE_KERNEL=1 turns a kernel that cannot be built into an error.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
PACKAGE = "he_runtime/kernel"
ABSENCE = "absence.txt"  # beside the sources, says why there is no module; he_runtime.kernel.status reads it
COMPILERS = ("c++", "g++", "clang++")


class CannotBuild(Exception):
    """Why there is no kernel: half a sentence for a person."""


class KernelHook(BuildHookInterface[Any]):
    """Adds the module to a wheel, or puts it into the checkout for an editable installation."""

    def dependencies(self) -> list[str]:
        """What the build needs beyond hatchling: nothing without a compiler, no CMake where the system has one."""
        if omitted() or compiler() is None:
            return []
        tools = [self.config["nanobind"]]
        if tool("cmake") is None:
            tools.append(self.config["cmake"])
        if tool("ninja") is None and tool("make") is None:
            tools.append(self.config["ninja"])
        return tools

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build, or say why not. The installation goes on either way, unless the kernel is required."""
        if version == "editable":
            if not omitted():
                build_in_place(optional=True)
            return
        self._scratch = tempfile.TemporaryDirectory()
        scratch = Path(self._scratch.name)
        try:
            module = build(scratch)
        except CannotBuild as error:
            go_without(error)
            module = scratch / ABSENCE
            module.write_text(f"{error}\n")
        else:
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
        build_data["force_include"][str(module)] = f"{PACKAGE}/{module.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self._scratch.cleanup()


def omitted() -> bool:
    return os.environ.get("SECATEUR_NO_KERNEL") == "1"


def tool(name: str) -> str | None:
    """A program that a wheel put beside this Python, or one on the path."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def compiler() -> str | None:
    """The C++ compiler that CMake would take: CXX where it is set, flags and all, or a common name."""
    if os.environ.get("CXX"):
        return os.environ["CXX"] if shutil.which(shlex.split(os.environ["CXX"])[0]) else None
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def go_without(error: CannotBuild) -> None:
    if os.environ.get("SECATEUR_REQUIRE_KERNEL") == "1":
        raise error
    print(f"secateur: no native kernel: {error}", file=sys.stderr)


def build_in_place(*, optional: bool) -> None:
    """Build into the checkout. A process that has the old module loaded keeps it.

    Raises:
        CannotBuild: there is no kernel, and it is not optional. An older module is then left where it is.
    """
    package = ROOT / PACKAGE
    try:
        with tempfile.TemporaryDirectory() as scratch:
            built = build(Path(scratch))
            new = package / f".{built.name}.{os.getpid()}"
            shutil.copy2(built, new)
        new.replace(package / built.name)
        (package / ABSENCE).unlink(missing_ok=True)
    except CannotBuild as error:
        if not optional:
            raise
        go_without(error)
        # What was built from other sources would only seem to fit.
        (package / module_name()).unlink(missing_ok=True)
        (package / ABSENCE).write_text(f"{error}\n")


def module_name() -> str:
    return f"_kernel{sysconfig.get_config_var('EXT_SUFFIX')}"


def build(scratch: Path) -> Path:
    """The compiled module, in a folder that later builds go on from or, in pip's throw-away environment, in `scratch`.

    Raises:
        CannotBuild: something is missing, or the compilation failed.
    """
    if omitted():
        raise CannotBuild("left out by SECATEUR_NO_KERNEL")
    need_tools()
    spec = importlib.util.find_spec("nanobind")
    if spec is None or spec.origin is None:
        raise CannotBuild("no nanobind")
    where = spec.origin
    keep = Path(where).is_relative_to(sys.prefix) and os.access(ROOT, os.W_OK)
    folder = (ROOT / "build" if keep else scratch) / f"kernel-{key(where, sys.executable)}"
    with locked(folder):
        configure(folder, [f"-DPython_EXECUTABLE={sys.executable}"])
        make(folder, "_kernel")
        module = folder / module_name()
        if not module.is_file():
            raise CannotBuild("the compilation gave a module for another Python")
        shutil.copy2(module, scratch / module.name)
    return scratch / module.name


def sanitize() -> None:
    """Build the kernel's own tests with address and undefined-behaviour sanitizers, and run them."""
    need_tools()
    folder = ROOT / "build" / f"sanitize-{key()}"
    with locked(folder):
        configure(folder, ["-DSECATEUR_SANITIZE=ON"])
        make(folder)
        run(
            [str(tool("ctest")), "--test-dir", str(folder), "--output-on-failure", "--no-tests=error"],
            "tests",
            show=True,
        )


def key(*more: str) -> str:
    """Names a build folder after everything that CMake would keep in its cache, so that no cache is ever stale."""
    return hashlib.sha256("\0".join([str(compiler()), *generator(), *more]).encode()).hexdigest()[:8]


def generator() -> list[str]:
    ninja = tool("ninja")
    return ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else ["-G", "Unix Makefiles"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def need_tools() -> None:
    if compiler() is None:
        named = os.environ.get("CXX")
        raise CannotBuild(f"CXX={named} is no program" if named else "no C++ compiler")
    if tool("cmake") is None:
        raise CannotBuild("no CMake")


def configure(folder: Path, options: list[str]) -> None:
    run([str(tool("cmake")), "-S", str(ROOT / PACKAGE), "-B", str(folder), *generator(), *options], "configuration")


def make(folder: Path, target: str = "all") -> None:
    jobs = str(os.cpu_count() or 1)
    run([str(tool("cmake")), "--build", str(folder), "--target", target, "--parallel", jobs], "compilation")


def run(command: list[str], step: str, *, show: bool = False) -> None:
    """Run one step. What it prints is shown on failure or on demand, and its first error becomes the reason."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if show or done.returncode:
        print(done.stdout, file=sys.stderr)
    if done.returncode:
        raise CannotBuild(f"the {step} failed: {first_error(done.stdout)}")


def first_error(text: str) -> str:
    """One line out of a compiler's or CMake's output."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    at = next((i for i, line in enumerate(lines) if re.search(r"\berror\b", line, re.I)), len(lines) - 1)
    if not lines:
        return "without a message"
    # CMake says where first, and then on the lines below what.
    said = " ".join(lines[at + 1 : at + 4]) if lines[at].startswith("CMake Error") else lines[at]
    return said[:160]


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the native kernel for this checkout.")
    parser.add_argument("--optional", action="store_true", help="go on without it where it cannot be built")
    parser.add_argument("--sanitize", action="store_true", help="build and run its own tests with sanitizers instead")
    asked = parser.parse_args()
    try:
        sanitize() if asked.sanitize else build_in_place(optional=asked.optional)
    except CannotBuild as error:
        print(f"cannot build the native kernel: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
