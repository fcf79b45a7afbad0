"""The documents: links lead somewhere, decisions are listed, and the Python in them imports what exists."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.S | re.M)


def markdown(tracked: list[Path]) -> list[Path]:
    return [path for path in tracked if path.suffix == ".md"]


def test_relative_links_lead_to_files(tracked: list[Path]) -> None:
    checked = 0
    for path in markdown(tracked):
        prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
        for target in LINK.findall(prose):
            if not re.match(r"[a-z]+:|#", target):
                checked += 1
                assert (path.parent / target.partition("#")[0]).exists(), f"{path.name}: {target}"
    assert checked


def test_every_decision_is_listed_and_follows_the_template(root: Path) -> None:
    folder = root / "docs" / "decisions"
    pages = sorted(folder.glob("[0-9]*.md"))
    index = (folder / "README.md").read_text()
    assert pages
    for number, page in enumerate(pages, 1):
        assert page.name.startswith(f"{number:04d}-"), "decisions are numbered in order"
        assert f"({page.name})" in index
        text = page.read_text()
        assert text.startswith(f"# {number:04d}: ")
        assert all(f"**{part}.**" in text for part in ("Context", "Choice", "Evidence", "Price")), page.name


def test_python_in_the_readme_imports_what_exists(root: Path) -> None:
    blocks = PYTHON_BLOCK.findall((root / "README.md").read_text())
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert not [a.name for a in node.names if not hasattr(module, a.name)]
