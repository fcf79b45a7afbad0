"""Whether the server is alive, whether it should get calls, and which models it serves, by the standard health service.

    "liveness"       SERVING as long as the process answers at all
    "", "readiness"  and every service by its name: SERVING while calls can succeed
    "model/<name>"   the same, where the model has a version that is served

A server is not ready while it drains, while no worker is up, and while a store that it needs is unhealthy.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from grpc_health.v1 import health, health_pb2

from .observe.logs import event

__all__ = ["LIVENESS", "MODEL", "READINESS", "Readiness"]

LIVENESS = "liveness"
READINESS = "readiness"
MODEL = "model/"
_LOOK_SECONDS = 0.5
_PROBE_SECONDS = 3.0  # a probe that takes longer counts as failed until it returns
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Readiness:
    """Keeps `servicer` up to date. `probes` say by name whether something that serving needs is there; they may block."""

    def __init__(
        self, services: Iterable[str], models: Callable[[], Iterable[str]], probes: Mapping[str, Callable[[], bool]]
    ) -> None:
        self.servicer: Any = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs lack it
        self._services = ("", READINESS, *services)
        self._models = models
        self._probes = dict(probes)
        self._running: dict[str, asyncio.Task[bool]] = {}
        self._failed: frozenset[str] = frozenset(probes)  # until somebody looked
        self._known_models: set[str] = set()
        self._draining = False

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the server is not ready, by the names of the probes or "draining"; empty when it is."""
        return (*(("draining",) if self._draining else ()), *sorted(self._failed))

    @property
    def ready(self) -> bool:
        return not self.problems

    def model_ready(self, name: str) -> bool:
        """Whether calls for a model can succeed."""
        return self.ready and name in set(self._models())

    async def drain(self) -> None:
        """Not ready from now on."""
        self._draining = True
        await self.tell()

    async def watch(self) -> None:
        """Look twice a second, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Ask every probe, and tell what changed."""
        healthy = await asyncio.gather(*(self._ask(name) for name in self._probes))
        failed = frozenset(name for name, good in zip(self._probes, healthy, strict=True) if not good)
        if failed != self._failed:
            level = logging.ERROR if failed else logging.INFO
            event("readiness", level=level, ready=not failed and not self._draining, problems=sorted(failed))
        self._failed = failed
        await self.tell()

    async def _ask(self, name: str) -> bool:
        """One probe. While an earlier question hangs no further one is asked: a stuck disk must not eat all threads."""
        task = self._running.get(name)
        if task is None:
            task = self._running[name] = asyncio.create_task(asyncio.to_thread(self._probes[name]))
        done, _ = await asyncio.wait({task}, timeout=_PROBE_SECONDS)
        if not done:
            return False
        del self._running[name]
        return task.exception() is None and task.result()

    async def tell(self) -> None:
        """Bring the health service up to date, at once."""
        status = _SERVING if self.ready else _NOT_SERVING
        for service in self._services:
            await self.servicer.set(service, status)
        served = set(self._models())
        for name in self._known_models | served:
            await self.servicer.set(MODEL + name, status if name in served else _NOT_SERVING)
        self._known_models |= served
        await self.servicer.set(LIVENESS, _SERVING)
