"""A real server whose workers echo: in this process, or in one of its own that can be killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from he_runtime.client_spec import ClientSpec
from server.config import EngineConfig, ServerConfig
from server.running import RunningServer, start, start_subprocess
from tests.server.harness import free_port

_TOML = """
address = "{address}"
models = "models"
state = "state"
drain_seconds = 5.0
log_level = "error"
[engine]
workers = 1
backend = "fake"
runtime = "echo_runtime"
"""


class EchoServer:
    """Model `echo` with the given spec on a port of its own, which a restart keeps."""

    def __init__(self, root: Path, spec: ClientSpec) -> None:
        self.root = root
        self.control = root / "control"
        self.address = f"127.0.0.1:{free_port()}"
        self.drain_seconds = 5.0
        self.running: RunningServer | None = None
        directory = root / "models" / spec.model / spec.version
        directory.mkdir(parents=True)
        self.control.mkdir()
        (directory / "spec.json").write_bytes(spec.to_json())
        (directory / "model.json").write_text(json.dumps({"control": str(self.control)}))

    def start(self, **sections: dict[str, Any]) -> None:
        """In a thread of this process; `sections` override fields of the configuration's sections."""
        config = ServerConfig(
            address=self.address,
            models=self.root / "models",
            state=self.root / "state",
            drain_seconds=self.drain_seconds,
            log_level="error",
            engine=replace(EngineConfig(), workers=1, backend="fake", runtime="echo_runtime", cancel_grace_seconds=0.5),
        )
        for name, changes in sections.items():
            config = replace(config, **{name: replace(getattr(config, name), **changes)})
        self.running = start(config)

    def start_process(self) -> None:
        file = self.root / "server.toml"
        file.write_text(_TOML.format(address=self.address))
        self.running = start_subprocess(file)

    def kill(self) -> None:
        assert self.running is not None and self.running.process is not None
        self.running.process.kill()
        self.stop()

    def stop(self) -> None:
        if self.running is not None:
            self.running.stop()
            self.running = None

    def set(self, name: str) -> Path:
        path = self.control / name
        path.touch()
        return path

    def open_gate(self, k: int) -> None:
        (self.control / "gates" / str(k)).touch()

    def evaluations(self) -> list[str]:
        """One digest of the input for each evaluation that was finished."""
        file = self.control / "evaluations"
        return file.read_text().split() if file.exists() else []


MakeEcho = Callable[..., EchoServer]
