"""The peak memory of evaluating one query, measured in a process that does nothing else: `python -m secateur.peak_memory`.

The process is to a plan what a server's worker is: it reads the plan, a key set and a query from files, and evaluates.
No secret is in it, and none of the memory that making keys takes.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from he_runtime import Plan

    from .local import Local

__all__ = ["measure_peak"]

_SECONDS = 900


def measure_peak(planned: Plan, local: Local, backend: str) -> tuple[int, int]:
    """Bytes: the peak of the process, and what of it was there before the plan was (interpreter and libraries).

    Raises BackendUnavailable where the process fails.
    """
    import numpy as np

    from he_runtime.errors import BackendUnavailable
    from he_runtime.wire import KeySetWriter, encode_ciphertexts

    query = local.encrypt(np.zeros(planned.inputs[0].shape))
    with tempfile.TemporaryDirectory(prefix="peak-") as name:
        folder = Path(name)
        planned.save(folder / "plan")
        (folder / "query").write_bytes(encode_ciphertexts(query, planned.params))
        with (folder / "keys").open("w+b") as file:
            writer = KeySetWriter(file, planned.params, planned.keys)
            for record in local.key_records():
                writer.write(record)
            writer.close()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", "secateur.peak_memory", str(folder), backend]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
        raise BackendUnavailable(f"cannot measure memory on {backend!r}: its process said {said[-1][:200]!r}")
    found = json.loads(done.stdout)
    return found["peak_bytes"], found["before_bytes"]


def _resident(field: str) -> int:
    """VmRSS or VmHWM of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _evaluate(folder: Path, backend: str) -> dict[str, int]:
    from he_runtime.backends import BACKENDS
    from server.engine.he_model import build

    importlib.import_module(BACKENDS[backend][0], "he_runtime.backends")  # the library itself is not the plan's memory
    before = _resident("VmRSS")
    model = build(folder, backend)
    keys = model.load_keys(folder / "keys", lambda: None)
    query = (folder / "query").read_bytes()
    for _ in range(2):  # what the first run leaves in pools is there in the second
        model.run(query, keys, lambda: None, lambda layer: None)
    return {"peak_bytes": _resident("VmHWM"), "before_bytes": before}


if __name__ == "__main__":
    print(json.dumps(_evaluate(Path(sys.argv[1]), sys.argv[2])))
