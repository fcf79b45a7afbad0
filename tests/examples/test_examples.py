"""Every numbered script in examples/ runs, is short, and ends in an assert that shows what it claims."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MOST_LINES = 100

each = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def test_examples_are_numbered_from_one() -> None:
    assert EXAMPLES
    assert [path.name[:3] for path in EXAMPLES] == [f"{number:02}_" for number in range(1, len(EXAMPLES) + 1)]


@each
def test_an_example_is_short_and_ends_in_an_assert(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < MOST_LINES
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert isinstance(main.body[-1], ast.Assert)
    assert ast.unparse(tree.body[-1]) == "if __name__ == '__main__':\n    main()"


@each
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    """In an empty directory, without data sets, with asserts on and warnings as errors."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SECATEUR_", "PYTHON"))}
    environment |= {"PYTHONPATH": str(ROOT), "SECATEUR_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout, "it prints what it found"
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"
