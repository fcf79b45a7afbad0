"""Both clients behind one surface, so that one test is for both."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from client import AsyncClient, Client

KINDS = ["blocking", "asyncio"]
Connect = Callable[..., Any]


class Blocking:
    """An AsyncClient, or a job of one, whose every method is waited for: tests then read alike for both clients."""

    def __init__(self, inner: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            result = found(*args, **options)
            if inspect.isasyncgen(result):
                return self._each(result)
            if inspect.iscoroutine(result):
                result = self._loop.run_until_complete(result)
            return Blocking(result, self._loop) if hasattr(result, "watch") else result

        return call

    def _each(self, found: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._loop.run_until_complete(anext(found))
                except StopAsyncIteration:
                    return
        finally:
            self._loop.run_until_complete(found.aclose())


@contextmanager
def clients(kind: str, home: Path) -> Iterator[Connect]:
    """Connect to an address, as often as is liked, with one key store; all are closed in the end."""
    with asyncio.Runner() as runner:
        made: list[Any] = []

        def one(address: str, **options: Any) -> Any:
            options = {"home": home, "timeout": 60.0, **options}
            if kind == "blocking":
                made.append(Client.connect(address, **options))
            else:
                loop = runner.get_loop()
                made.append(Blocking(loop.run_until_complete(AsyncClient.connect(address, **options)), loop))
            return made[-1]

        yield one
        for client in made:
            client.close()


def expected(samples: np.ndarray) -> np.ndarray:
    """What the echo of raw samples is: they come back normalized."""
    return (samples.reshape(-1, 8) - 0.5) / 0.25
