"""Serving until told to stop, by a signal or by an administrator."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable

from .app import App
from .config import ServerConfig
from .observe import logs

__all__ = ["run"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Told:
    """What signals asked for: to drain and end, then to end at once."""

    def __init__(self) -> None:
        self.to_stop = asyncio.Event()
        self.at_once = asyncio.Event()

    def hear(self) -> None:
        if self.to_stop.is_set():
            self.at_once.set()
        self.to_stop.set()


async def _serve_until_told(config: ServerConfig, on_ready: Callable[[str], None]) -> None:
    told, loop = _Told(), asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, told.hear)
    app = await App.start(config)
    asked = asyncio.create_task(app.wait_until_told())
    asked.add_done_callback(lambda _: told.to_stop.set())
    try:
        on_ready(app.address)
        await told.to_stop.wait()
    finally:
        asked.cancel()
        await app.stop(told.at_once)


def run(config: ServerConfig, on_ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve until SIGTERM, SIGINT or an administrator's Drain, then drain; a second signal ends the server at once.

    `on_ready` gets the address once calls are taken. Raises ConfigError for what keeps the configuration from serving.
    """
    logs.set_up(config.log_level)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve_until_told(config, on_ready))
