"""What a terminal shows: 80 columns hold it, progress bars move on standard error, and --json keeps standard output pure."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WIDTH = 80
COMMANDS = ["demo", "recommend", "compress", "plan", "estimate", "serve", "predict", "calibrate", "bench", "doctor"]


@pytest.mark.parametrize("command", [*COMMANDS, "bench tenseal-cnn", "bench accuracy", "bench latency"])
def test_help_says_what_a_command_does(command: str, cli: Any) -> None:
    said = cli(*command.split(), "--help")
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= WIDTH
    if command != "bench":
        assert "--json" in said.out


def test_help_lists_every_command(cli: Any) -> None:
    said = cli("--help")
    assert [name for name in COMMANDS if not re.search(rf"^│ {name} ", said.out, re.M)] == []


def test_results_fit_the_terminal(made: Any, cli: Any, tmp_path: Path) -> None:
    for arguments in (
        ["estimate", made.directory],
        ["calibrate", made.directory, "--seconds", "0.2"],
        ["doctor"],
    ):
        said = cli(*arguments)
        assert said.code == 0
        assert max(map(len, said.out.splitlines())) <= WIDTH, arguments


def test_the_command_is_installed_as_a_module(environment: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "secateur", "plan", "nowhere"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: cannot load a model from nowhere") and done.stderr.count("\n") == 1


def on_a_terminal(arguments: list[object], environment: dict[str, str], directory: Path) -> tuple[str, str]:
    """Standard output of a command, and what its standard error draws on a terminal of 80 columns."""
    main, side = pty.openpty()
    command = [sys.executable, "-m", "secateur", *map(str, arguments)]
    process = subprocess.Popen(
        command, env=environment | {"TERM": "xterm"}, cwd=directory, stdout=subprocess.PIPE, stderr=side, text=True
    )
    os.close(side)
    drawn = b""
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        drawn += part
    os.close(main)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, drawn
    return out, drawn.decode()


@pytest.mark.parametrize("command", ["compress", "calibrate", "predict"])
def test_long_work_shows_a_bar(
    command: str, made: Any, service: Any, images: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    np.save(tmp_path / "one.npy", images[0])
    (tmp_path / "small.toml").write_text(
        "name = 'small'\ndataset = 'digits'\ntrain_limit = 64\n[teacher]\nepochs = 1\n"
    )
    (tmp_path / "small.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    where = ["--server", service.address, "--certificate", service.certificate, "--home", tmp_path / "home"]
    arguments, shown = {
        "compress": (["compress", "small.toml", "--module", "small:make"], ("teacher", "1/1")),
        "calibrate": (["calibrate", made.directory, "--seconds", 0.5], ("calibrating", "%")),
        "predict": (["predict", "tiny", "one.npy", *where], ("uploading keys", "MB")),
    }[command]
    out, drawn = on_a_terminal([*arguments, "--json"], environment, tmp_path)
    assert isinstance(json.loads(out), dict)
    assert "━" in drawn
    for text in shown:
        assert text in drawn
