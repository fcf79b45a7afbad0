"""Servers for tests, demos and notebooks: in a thread of this process, or in a process of their own."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from .app import App
from .config import ServerConfig
from .errors import ConfigError

__all__ = ["RunningServer", "start", "start_subprocess"]

_START_SECONDS = 120.0


@dataclass
class RunningServer:
    """A server that takes calls at `address` (host:port or unix:path). Also a context manager that stops it."""

    address: str
    _stop: Callable[[], None] = field(repr=False)
    worker_pids: Callable[[], list[int]] = field(default=list, repr=False)
    process: subprocess.Popen[str] | None = field(default=None, repr=False)
    metrics_address: str = ""  # where metrics are scraped, when they are on
    admin_address: str = ""  # of the AdminService, when it is on

    def stop(self) -> None:
        """Drain and end; returns when the server is gone."""
        self._stop()

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Host:
    """A thread with an event loop that an App lives in."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._ready = threading.Event()
        self._told: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: BaseException | None = None
        self.app: App | None = None
        self._thread = threading.Thread(target=self._main, name="secateur-server", daemon=True)

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # handed to whoever waits in start
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._told = asyncio.get_running_loop(), (told := asyncio.Event())
        self.app = await App.start(self._config)
        self._ready.set()
        asked = asyncio.create_task(self.app.wait_until_told())
        asked.add_done_callback(lambda _: told.set())
        await told.wait()
        asked.cancel()
        await self.app.stop()

    def start(self) -> App:
        self._thread.start()
        self._ready.wait(_START_SECONDS)
        if self._error is not None:
            raise self._error
        if self.app is None:
            raise ConfigError(
                f"cannot start the server: not ready after {_START_SECONDS:.0f} s; try a smaller model or engine.preload = false"
            )
        return self.app

    def stop(self) -> None:
        if self._thread.is_alive() and self._loop is not None and self._told is not None:
            self._loop.call_soon_threadsafe(self._told.set)
        self._thread.join()


def start(config: ServerConfig) -> RunningServer:
    """Serve from a thread of this process; ConfigError when it cannot start."""
    host = _Host(config)
    app = host.start()
    return RunningServer(
        app.address,
        host.stop,
        lambda: app.engine.pids,
        metrics_address=app.metrics_address,
        admin_address=app.admin_address,
    )


def start_subprocess(
    config_file: Path | str, environment: Mapping[str, str] | None = None, seconds: float = _START_SECONDS
) -> RunningServer:
    """Serve `config_file` from a process of its own; `environment` adds overrides. Its log goes to this standard error.

    Raises ConfigError when it does not come up within `seconds`.
    """
    path = os.pathsep.join(os.path.abspath(p) for p in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-m", "server", "--config", str(config_file)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **(environment or {})},
    )
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    line = process.stdout.readline() if ready else ""
    if not line:
        process.kill()
        process.wait()
        process.stdout.close()
        raise ConfigError(
            f"cannot start the server: it ended or was not ready after {seconds:.0f} s; see its messages above"
        )
    return RunningServer(str(json.loads(line)["address"]), lambda: _end(process), process=process)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
