"""`secateur bench kernel`: the keys that it promises, and figures that agree with each other."""

from __future__ import annotations

import importlib
import os
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from secateur import bench_kernel

FUSED_KEYS = {"fused_ms", "fused_ratio"}
ROW_KEYS = {"N", "limbs", "seal_ms", "native_ms", "ratio", "bandwidth_fraction", "path"}
KEYS = {"rotation", "hoisted16", "upload", "ntt_us", "ntt_seal_us", "ntt_ratio"}


@pytest.fixture(scope="module")
def module() -> Any:
    try:
        return importlib.import_module("he_runtime.kernel._kernel")
    except ImportError:
        if os.environ.get("SECATEUR_REQUIRE_KERNEL") == "1":
            raise
        pytest.skip("the kernel is not built; see he_runtime/kernel/CMakeLists.txt")


def rendered(record: dict[str, Any]) -> str:
    console = Console(file=StringIO(), width=80, markup=False)
    bench_kernel._render(console, record)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_quick(module: Any, ask: Any) -> None:
    before = module.threads()
    record = ask("bench", "kernel", "--quick")
    assert module.threads() == before
    assert set(record) == KEYS | {"path", "prime_bits", "rounds", "threads", "machine", "versions"}
    assert record["path"] == module.default_path() and record["threads"] == 1
    (single,), (hoisted,) = record["rotation"], record["hoisted16"]
    assert set(single) == ROW_KEYS and set(hoisted) == ROW_KEYS | FUSED_KEYS
    for row in (single, hoisted):
        assert (row["N"], row["limbs"], row["path"]) == (8192, 3, record["path"])
        assert row["ratio"] == pytest.approx(row["seal_ms"] / row["native_ms"])
        assert 0 < row["bandwidth_fraction"] < 1, "nothing is faster than reading its keys"
    assert hoisted["fused_ratio"] == pytest.approx(hoisted["seal_ms"] / hoisted["fused_ms"])
    assert hoisted["fused_ms"] < hoisted["native_ms"] < hoisted["seal_ms"], "fewer divisions, and one decomposition"
    (upload,) = record["upload"]
    assert set(upload) == {"N", "limbs", "seal_ms", "native_ms"} and upload["N"] == 8192
    assert 0 < upload["native_ms"] < upload["seal_ms"], "no file, and the seed hashed side by side"
    assert record["ntt_ratio"] == pytest.approx(record["ntt_seal_us"] / record["ntt_us"])
    assert record["prime_bits"] == {"8192": 49, "ntt": 50}
    shown = rendered(record)
    assert max(map(len, shown.splitlines())) <= 80
    assert "8192" in shown and "3+1" in shown


def test_a_forced_path(module: Any, ask: Any) -> None:
    record = ask("bench", "kernel", "--quick", "--path", "portable", "--rounds", 1)
    assert {row["path"] for row in record["rotation"] + record["hoisted16"]} == {record["path"]} == {"portable"}
    assert record["rounds"] == {"8192": 1, "ntt": 1}
    assert "none" in rendered(record)


def test_a_path_that_does_not_exist(module: Any, cli: Any) -> None:
    said = cli("bench", "kernel", "--quick", "--path", "sse2")
    assert said.code != 0
    assert "cannot measure path 'sse2'" in said.err


@pytest.mark.parametrize(
    ("name", "ratio", "fraction", "path", "verdict"),
    [
        ("rotation", 5.0, 0.1, "ifma", "5 met"),
        ("rotation", 4.9, 0.9, "ifma", "5 missed"),
        ("rotation", 2.1, 0.1, "avx2", "2 met"),
        ("rotation", 9.0, 0.1, "portable", "none"),
        ("hoisted16", 12.5, 0.1, "ifma", "12 met"),
        ("hoisted16", 11.9, 0.69, "ifma", "12 missed"),
        ("hoisted16", 9.0, 0.71, "ifma", "70% met"),
    ],
)
def test_targets(name: str, ratio: float, fraction: float, path: str, verdict: str) -> None:
    row = {"N": 8192, "limbs": 3, "seal_ms": ratio, "native_ms": 1.0, "ratio": ratio, "bandwidth_fraction": fraction}
    record = {
        "rotation": [],
        "hoisted16": [],
        "upload": [],
        "ntt_us": 1.0,
        "ntt_seal_us": 6.0,
        "ntt_ratio": 6.0,
        "path": path,
    }
    shown = rendered(record | {name: [row], "machine": "a machine"})
    assert verdict in shown
    assert ("6.5 missed" in shown) == (path == "ifma")
