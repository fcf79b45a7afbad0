"""Where a cost table was made, and whether that is here and lately: no table is used in silence where it does not hold."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

__all__ = ["MAX_AGE_DAYS", "Environment", "here", "machine_name", "processor_name"]

MAX_AGE_DAYS = 180  # firmware and kernels change too


@dataclass(frozen=True)
class Environment:
    """A processor's name, versions by package, and when. A package that is not installed is absent."""

    machine: str
    libraries: Mapping[str, str]
    now: datetime.datetime

    def doubts(self, machine: str, libraries: Mapping[str, str], date: str) -> tuple[str, ...]:
        """In what a table of that machine, those libraries and that ISO 8601 date is not of this environment."""
        found = [] if machine == self.machine else [f"measured on {machine}, and this is {self.machine}"]
        for name, version in libraries.items():
            have = self.libraries.get(name)
            if have != version:
                found.append(f"measured with {name} {version}, and here is " + (have or "none"))
        age = (self.now - _utc(date)).days
        if age > MAX_AGE_DAYS:
            found.append(f"measured {age} days ago")
        elif age < -1:
            found.append(f"dated {-age} days ahead")
        return tuple(found)


def here(packages: tuple[str, ...]) -> Environment:
    """This machine, now, with the installed versions of `packages` ("python" is the interpreter's)."""
    versions = {name: version for name in packages if (version := _version(name)) is not None}
    return Environment(machine_name(), versions, datetime.datetime.now(datetime.UTC))


def _utc(date: str) -> datetime.datetime:
    """A time without a zone counts as UTC."""
    parsed = datetime.datetime.fromisoformat(date)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)


@cache
def _version(package: str) -> str | None:
    if package == "python":
        return platform.python_version()
    if package == "native":  # the kernel comes with the project
        package = "secateur"
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def machine_name() -> str:
    """The processor as /proc/cpuinfo describes it, else the platform's word for it."""
    try:
        found = processor_name(Path("/proc/cpuinfo").read_text())
    except OSError:
        found = ""
    return found or platform.processor() or platform.machine()


def processor_name(cpuinfo: str) -> str:
    """The first processor's name with its family and model: virtual machines call many generations the same."""
    first, _, _ = cpuinfo.partition("\n\n")
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    known = [f"{what} {fields[key]}" for what, key in (("family", "cpu family"), ("model", "model")) if key in fields]
    return fields.get("model name", "") + (f" ({', '.join(known)})" if known and "model name" in fields else "")
