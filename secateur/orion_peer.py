"""Orion in a process of its own that stays alive between images, so that measurements can be taken in turn with ours."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from .orion_environment import ORION, orion_python
from .orion_export import CONFIGURATIONS, export

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from he_runtime import CompressedModel

    Floats = npt.NDArray[np.float64]

__all__ = ["OrionPeer"]

_SETUP_SECONDS = 1800.0
_RUN_SECONDS = 600.0
_SETTLE_SECONDS = 5.0
_MEMORY_SHARE = 0.7  # of what is free: above it Go's collector works harder, instead of the kernel ending the process


class OrionPeer:
    """One network in Orion. `run(k)` infers image k; `facts` says with what."""

    def __init__(self, model: CompressedModel, network: str, x: Floats, largest: float, environment: Path) -> None:
        """`x` (n, *shape) normalized. Raises BackendUnavailable where Orion cannot be installed or started."""
        from he_runtime.errors import BackendUnavailable

        if network not in CONFIGURATIONS:
            raise BackendUnavailable(f"cannot run {network!r} in Orion: its configurations are for MLP, LoLA and LeNet")
        python = orion_python(environment)
        self._resources = ExitStack()
        try:
            folder = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="orion-")))
            self._factor = export(model, network, x, largest, folder / "network.npz")
            self._log = folder / "log"
            self._process = self._start([str(python), str(ORION / "run.py"), str(folder / "network.npz")])
            ready = self._read(_SETUP_SECONDS)
        except BaseException:
            self.close()
            raise
        config = CONFIGURATIONS[network]
        self.facts: dict[str, Any] = {"config": config, "log2_qp": sum(config["LogQ"] + config["LogP"])}
        self.facts |= {name: ready[name] for name in ("version", "setup_s")}

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
        environment = {"GOMEMLIMIT": f"{int(_MEMORY_SHARE * _available_bytes())}B"} | kept
        pipe = subprocess.PIPE
        with self._log.open("w") as log:
            process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=log, text=True)
        self._resources.callback(_end, process)
        return process

    def run(self, k: int) -> tuple[float, Floats]:
        """Seconds from encrypted input to encrypted output of image `k`, and the logits."""
        import numpy as np

        with suppress(OSError):  # it ended: reading says how
            _pipe(self._process.stdin).write(f"{k}\n")
            _pipe(self._process.stdin).flush()
        record = self._read(_RUN_SECONDS)
        self.facts["peak_bytes"] = record["peak_bytes"]
        self._settle()
        return float(record["seconds"]), np.array(record["output"]) / self._factor

    def _read(self, seconds: float) -> dict[str, Any]:
        """The next line; BackendUnavailable when the process ends or says nothing for so long."""
        from he_runtime.errors import BackendUnavailable

        stream = _pipe(self._process.stdout)
        ready, _, _ = select.select([stream], [], [], seconds)
        line = stream.readline() if ready else ""
        if not line:
            why = f"no answer in {seconds:.0f} s" if not ready else f"its process ended: {self._last_words()}"
            raise BackendUnavailable(f"cannot run Orion: {why}; try --no-orion")
        record: dict[str, Any] = json.loads(line)
        return record

    def _last_words(self) -> str:
        code = self._process.wait(30)
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        failed = [line for line in lines if "Error" in line or line.startswith("panic")] or lines[-1:]
        return f"code {code}, {failed[-1][:200] if failed else 'without a word'}"

    def _settle(self) -> None:
        """Wait until its garbage collector is done, so that it takes no processor time from whoever is next."""
        deadline, before = time.monotonic() + _SETTLE_SECONDS, -1.0
        while (now := _processor_ticks(self._process.pid)) != before and time.monotonic() < deadline:
            before = now
            time.sleep(0.05)

    def close(self) -> None:
        """End the process and remove its files."""
        self._resources.close()

    def __enter__(self) -> OrionPeer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with suppress(OSError):  # what it had not read yet
            _pipe(stream).close()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _available_bytes() -> int:
    """What can be allocated without swapping (Linux)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _processor_ticks(pid: int) -> float:
    """Of processor time that the process has used (Linux); 0 where that cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return float(fields[11]) + float(fields[12])
