"""The benchmark scripts as modules, and ways to run them in this process."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from he_runtime.model import CompressedModel, InputSpec, Node, OutputSpec
from he_runtime.reference import calibrate

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """Load benchmarks/<name>.py as `python benchmarks/<name>.py` would, without running it."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run a script's main with --json: standard output must be one JSON object on one line."""

    def run(module: ModuleType, *arguments: object) -> dict[str, Any]:
        module.main([*map(str, arguments), "--json"])
        (line,) = capsys.readouterr().out.splitlines()
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    return run


@pytest.fixture(scope="session")
def small() -> CompressedModel:
    """32-32-16 with a square between: every packing of it is planned and run in a moment."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(size=(32, 32)) / 6, "v": rng.normal(size=(16, 32)) / 6}
    arrays |= {"one": np.ones(()), "zero": np.zeros(())}
    nodes = (
        Node("fc1", "dense", ("x",), (32,), {}, {"weight": "w"}),
        Node("act", "quadratic", ("fc1",), (32,), {}, {"a": "one", "b": "zero", "c": "zero"}),
        Node("fc2", "dense", ("act",), (16,), {}, {"weight": "v"}),
    )
    model = CompressedModel("small", InputSpec("x", (32,)), OutputSpec("fc2"), nodes, arrays)
    return calibrate(model, rng.uniform(-1, 1, size=(64, 32)))
