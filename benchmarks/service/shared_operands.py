"""What a further worker of one machine costs in memory, with encoded weights shared between workers and without.

    python -m benchmarks.service.shared_operands [--count 3] [--inputs 512 --layers 1 --degree 16384]

Serves one dense encrypted layer on the native back end with one worker and with `--count` of them, once with a directory for shared
operands and once with one that the server may not use. Each time the proportional memory (PSS) of the workers is added up,
once all of them have the model. Prints one JSON object; exits with 1 where sharing saves less than 0.8 of the operands for
each further worker.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from he_runtime import compile
from server.running import start_subprocess

from .deadline import wide_model

__all__ = ["main", "shared_operands"]

_SAVED = 0.8  # of the operands, for each further worker
_START_SECONDS = 300.0
_ANY_ERROR = 1e30


def shared_operands(directory: Path, *, count: int, inputs: int, layers: int, degree: int) -> dict[str, Any]:
    """Bytes of the workers' memory: {"shared" | "own": {"one", "all", "further"}}, and the size of the operands."""
    model = wide_model(inputs, layers)
    plan = compile(model, degrees=(degree,), max_error=_ANY_ERROR)
    plan.save(model.save(directory / "models" / "wide" / "1") / "plan")
    found: dict[str, Any] = {}
    for name, mode in (("shared", 0o700), ("own", 0o777)):  # one that others may write to is not used
        operands = directory / name
        operands.mkdir()
        operands.chmod(mode)
        one, everyone = (_workers_bytes(directory, operands, workers) for workers in (1, count))
        found[name] = {"one": one, "all": everyone, "further": (everyone - one) // (count - 1)}
    size = sum(path.stat().st_size for path in (directory / "shared").glob("*.operands"))
    assert not list((directory / "own").iterdir())
    saved = found["own"]["further"] - found["shared"]["further"]
    return {"operand_bytes": size, **found, "saved_share": round(saved / size, 2), "ok": saved >= _SAVED * size > 0}


def _workers_bytes(directory: Path, operands: Path, workers: int) -> int:
    """Of all workers together, each of which has loaded the model."""
    path = directory / "server.toml"
    lines = ['address = "127.0.0.1:0"', 'log_level = "error"', 'models = "models"', 'state = "state"', "[engine]"]
    lines += ['backend = "native"', f"workers = {workers}", f"operands = {json.dumps(str(operands))}"]
    path.write_text("\n".join(lines) + "\n")
    with start_subprocess(path, seconds=_START_SECONDS) as server:
        assert server.process is not None
        children = _children(server.process.pid)
        assert len(children) == workers, children
        return sum(map(_proportional_bytes, children))


def _children(pid: int) -> list[int]:
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def _proportional_bytes(pid: int) -> int:
    """Memory of a process; what several share is divided among them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3, help="workers, at least 2")
    parser.add_argument("--inputs", type=int, default=512)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--degree", type=int, default=16384)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        about = {"inputs": options.inputs, "layers": options.layers, "degree": options.degree}
        figures = shared_operands(Path(name), count=max(2, options.count), **about)
    print(json.dumps({"settings": vars(options), **figures}))
    return 0 if figures["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
