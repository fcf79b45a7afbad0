"""Encoded operands in a file that processes map: the same results, one copy in memory, nothing wrong from a damaged file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_runtime import Executor, Plan, compile
from he_runtime.backends import native
from he_runtime.backends.shared_operands import SUFFIX, SharedOperands, shapes
from he_runtime.kernel import status
from tests.he_runtime.networks import NETWORKS

pytestmark = pytest.mark.skipif(not status().available, reason="the kernel is not built")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return compile(NETWORKS["mlp"]().calibrated("operands"), degrees=(8192, 16384), max_error=1.0)


def rows(backend: Any, index: int, shape: tuple[int, int]) -> Any:
    found = np.empty(shape, np.uint64)
    backend.kernel.residues(backend.ring, backend.plaintext(index), found)
    return found


def open_with(plan: Plan, share: Path | None) -> Any:
    return native.NativeBackend(plan, share=share)


def file_in(directory: Path) -> Path:
    (found,) = directory.glob(f"*{SUFFIX}")
    return found


def test_borrowed_operands_are_those_that_are_encoded(plan: Plan, tmp_path: Path) -> None:
    own, first, second = open_with(plan, None), open_with(plan, tmp_path), open_with(plan, tmp_path)
    assert shapes(plan)
    for index, shape in shapes(plan).items():
        for backend in (first, second):
            assert backend.plaintext(index).bytes == 0 < own.plaintext(index).bytes
            assert np.array_equal(rows(backend, index, shape), rows(own, index, shape))
    assert file_in(tmp_path).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_made_again(plan: Plan, tmp_path: Path, damage: str) -> None:
    open_with(plan, tmp_path)
    path = file_in(tmp_path)
    good = path.read_bytes()
    middle = len(good) // 2
    bad = {"flip": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :], "cut": good[:-8], "empty": b""}
    path.unlink()
    path.write_bytes(bad[damage])
    assert open_with(plan, tmp_path).unshared == ""
    assert path.read_bytes() == good


def test_a_failed_write_leaves_nothing(plan: Plan, tmp_path: Path) -> None:
    def full(index: int, residues: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        SharedOperands.open(tmp_path, plan, full)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_without_room_each_process_has_its_own(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    backend = open_with(plan, tmp_path / "file" / "below")
    assert backend.unshared
    assert backend.plaintext(next(iter(shapes(plan)))).bytes > 0


def test_a_file_of_a_link_is_not_followed(plan: Plan, tmp_path: Path) -> None:
    open_with(plan, tmp_path / "one")
    path = file_in(tmp_path / "one")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / path.name).symlink_to(path)
    assert open_with(plan, tmp_path / "two").unshared


def test_the_kernel_refuses_residues_that_are_none(plan: Plan) -> None:
    backend = open_with(plan, None)
    index, shape = next(iter(shapes(plan).items()))
    level, extended = plan.plaintexts[index].level, index in plan.extended_plaintexts
    lines = np.zeros(shape[0] * shape[1] + 16, np.uint64)
    start = (-lines.ctypes.data % 64) // 8
    good = lines[start : start + shape[0] * shape[1]].reshape(shape)
    assert backend.kernel.borrow(backend.ring, level, extended, good).level == level
    with pytest.raises(ValueError, match="cache line"):
        moved = lines[start + 1 : start + 1 + shape[0] * shape[1]].reshape(shape)
        backend.kernel.borrow(backend.ring, level, extended, moved)
    with pytest.raises(ValueError, match="shape"):
        backend.kernel.borrow(backend.ring, level, extended, good[:, :-1].copy())
    good[0, 0] = plan.params.primes[0]
    with pytest.raises(ValueError, match="below its prime"):
        backend.kernel.borrow(backend.ring, level, extended, good)


HOLD = """
import sys
from pathlib import Path
from he_runtime import Plan
from he_runtime.backends.native import NativeBackend
plan = Plan.load(Path(sys.argv[1]))
backend = NativeBackend(plan, share=Path(sys.argv[2]) if sys.argv[2] else None)
held = [backend.plaintext(k) for k in range(len(plan.plaintexts))]
print("ready", flush=True)
sys.stdin.read()
"""


def private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def test_more_processes_take_no_more_memory_for_operands(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan")
    size = sum(r * n * 8 for r, n in shapes(plan).values())
    held: dict[str, list[int]] = {}
    for share in ("", str(tmp_path / "operands")):
        arguments = [sys.executable, "-c", HOLD, str(tmp_path / "plan"), share]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        made = [
            subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            for _ in range(2)
        ]
        try:
            for process in made:
                assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            held[share] = [private_bytes(process.pid) for process in made]
        finally:
            for process in made:
                process.kill()
                process.communicate()
    own, shared = held.values()
    saved = sum(own) - sum(shared)
    assert saved > 1.5 * size, json.dumps({"own": own, "shared": shared, "operands": size})


def test_an_executor_shares_where_its_backend_can(plan: Plan, tmp_path: Path) -> None:
    assert Executor(plan, "native", tmp_path / "native").backend.unshared == ""
    assert file_in(tmp_path / "native").stat().st_size > 0
