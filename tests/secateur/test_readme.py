"""README.md: its commands exist with the options shown, and its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from secateur.main import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.S | re.M)
SHOWN = re.findall(r"`(secateur [^`\n]+)`", README) + re.findall(r"^(secateur .+)$", README, re.M)


@pytest.mark.parametrize("line", sorted(set(SHOWN)))
def test_a_command_is_one_that_there_is(line: str) -> None:
    """By the command's own parser, short of running it; an argument left out in prose is no mistake."""
    command: Any = get_command(app)
    words = shlex.split(line)[1:]
    while hasattr(command, "commands") and words:
        assert words[0] in command.commands
        command = command.commands[words.pop(0)]
    options = {flag for parameter in command.params for flag in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_the_readme_shows_every_command() -> None:
    missing = [name for name in get_command(app).commands if f"`secateur {name}" not in README]  # type: ignore[attr-defined]
    assert missing == []


def test_the_client_code_runs(service: Any, images: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (block for block in BLOCKS if "Client" in block)
    np.save(tmp_path / "digit.npy", images[0])  # the autouse fixture made tmp_path the working directory
    address = f'"{service.address}", certificate="{service.certificate}"'
    changed = block.replace('"localhost:50051"', address).replace('"digits-cnn"', '"tiny"')
    assert changed.count(str(service.certificate)) == changed.count('"tiny"') == 1
    exec(changed, {})
    assert capsys.readouterr().out.split()[0] in set("0123456789")


def test_the_researchers_code_runs(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (block for block in BLOCKS if "Recipe" in block)
    name = re.search(r'"(recipes/.+?)"', block)
    assert name is not None and (ROOT / name[1]).is_file()
    exec(block.replace(name[1], str(recipe)), {})
    printed = capsys.readouterr().out
    assert printed.startswith("plan tiny") and "'rotate'" in printed


def test_the_code_with_a_method_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = (block for block in BLOCKS if "DiaGrid" in block)
    scope: dict[str, Any] = {}
    exec(block, scope)
    step = scope["model"].metadata["steps"][-1]
    assert float(capsys.readouterr().out) == step["planned_ms"] <= 1.03 * step["target_ms"]
