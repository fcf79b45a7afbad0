"""A tiny recipe, the model it makes, a server of it, and ways to run a command and read what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
RECIPE = """
name = "tiny"
network = "digits-mlp"
dataset = "digits"
train_limit = 512

[teacher]
epochs = 8
learning_rate = 1e-2

[[steps]]
method = "quadratics"
[steps.training]
epochs = 4
learning_rate = 1e-2

[[steps]]
method = "diagonals"
density = 0.5
[steps.training]
epochs = 4
learning_rate = 1e-2

[[steps]]
method = "integers"
bits = 8
[steps.training]
epochs = 1
"""


@dataclass(frozen=True)
class Said:
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


Cli = Callable[..., Said]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data set, cache, secret or setting of this machine reaches a command."""
    for name in os.environ:
        if name.startswith("SECATEUR_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SECATEUR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run a command in this process."""
    from secateur.main import app

    def run(*arguments: object) -> Said:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return Said(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def ask(cli: Cli) -> Callable[..., dict[str, Any]]:
    """Run a command with --json: it must succeed, and print one JSON object on one line and nothing else."""

    def run(*arguments: object) -> dict[str, Any]:
        said = cli(*arguments, "--json")
        assert said.code == 0, said.err
        (line,) = said.out.splitlines()
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    return run


@pytest.fixture(scope="session")
def refused(cli: Cli) -> Callable[..., str]:
    """Run a command that must fail: its one line "cannot ...", with nothing on standard output and no traceback."""

    def run(*arguments: object) -> str:
        said = cli(*arguments)
        assert said.code == 1
        assert said.out == ""
        (line,) = (line for line in said.err.splitlines() if line.startswith("error: "))
        assert line.startswith("error: cannot ")
        assert said.err.splitlines()[-1] == line
        assert "Traceback" not in said.err
        return line

    return run


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@dataclass(frozen=True)
class Made:
    """What `secateur compress` wrote, and what it said."""

    models: Path
    directory: Path
    record: Mapping[str, Any]


@pytest.fixture(scope="session")
def made(ask: Callable[..., dict[str, Any]], recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    models = tmp_path_factory.mktemp("served") / "models"
    record = ask("compress", recipe, "--out", models)
    return Made(models, models / "tiny" / "1", record)


@pytest.fixture(scope="session")
def images() -> Any:
    """Raw test images (360, 1, 8, 8)."""
    from model_prep.data import load

    return load("digits").x_test.astype(np.float64)


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Of a process that runs a command from this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SECATEUR_")}
    return kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


@dataclass(frozen=True)
class Service:
    """A server process: where it listens and which certificate it shows."""

    address: str
    certificate: Path


@pytest.fixture(scope="session")
def service(made: Made, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`secateur serve` with TLS on loopback, in a process of its own; it must end well when told to."""
    from server import make_self_signed

    root = tmp_path_factory.mktemp("service")
    certificate, private_key = make_self_signed(root / "tls")
    command = [sys.executable, "-m", "secateur", "serve", "--json", "--address", "127.0.0.1:0"]
    command += ["--models", str(made.models), "--state", str(root / "state")]
    command += ["--certificate", str(certificate), "--private-key", str(private_key)]
    with (root / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=root, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["tls"] is True
        yield Service(ready["address"], certificate)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "", "only the address goes to standard output"
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
