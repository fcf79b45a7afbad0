"""At most one evaluation per request id: equal requests within a window share it, also after a lost reply.

The id is bound to the caller's tenant, key set and content, so an id used twice for different inputs is two
requests. An evaluation goes on while at least one caller waits for it, and is cancelled with the last. Only
successes are remembered, within a budget of bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from he_runtime.errors import Cancelled, Reason
from protos.native import InferenceReply

from ..config import LimitsConfig

__all__ = ["RequestKey", "RequestWindow"]


@dataclass(frozen=True)
class RequestKey:
    """What makes two requests the same one: nobody shares another tenant's."""

    tenant: str
    request_id: str
    keys_sha256: str
    plan_digest: str
    content_sha256: str

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.tenant, self.request_id, self.keys_sha256, self.plan_digest, self.content_sha256)


@dataclass
class _Running:
    task: asyncio.Task[InferenceReply]
    callers: int = 0


class RequestWindow:
    """Evaluations under way and recent replies. Belongs to one event loop."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._running: dict[RequestKey, _Running] = {}
        self._done: OrderedDict[RequestKey, tuple[float, InferenceReply]] = OrderedDict()
        self._bytes: Counter[str] = Counter()  # by tenant
        self._ids: Counter[tuple[str, str]] = Counter()  # under way or remembered

    def may_know(self, tenant: str, request_id: str) -> bool:
        """Whether an equal request may be under way or remembered; if not, this one is new."""
        return (tenant, request_id) in self._ids

    async def share(
        self, key: RequestKey, seconds: float | None, evaluate: Callable[[], Coroutine[Any, Any, InferenceReply]]
    ) -> InferenceReply:
        """The remembered reply for `key`, the one under way, or else that of a new evaluation.

        Each caller waits for its own `seconds` (none: without limit); DEADLINE_EXCEEDED after that.
        """
        self._forget_old()
        if key in self._done:
            return self._done[key][1]
        running = self._running.get(key)
        if running is None:
            running = _Running(asyncio.create_task(evaluate()))
            self._running[key] = running
            self._count(key, 1)
        running.callers += 1
        try:
            async with asyncio.timeout(seconds):
                reply = await asyncio.shield(running.task)
        except TimeoutError:
            raise Cancelled(
                f"cannot finish: got a deadline of {seconds:.1f} s, which has passed; try a later one",
                Reason.DEADLINE_EXCEEDED,
            ) from None
        finally:
            running.callers -= 1
            if running.callers == 0:
                if self._running.pop(key, None) is not None:
                    self._count(key, -1)
                running.task.cancel()  # of no effect on a finished task
        self._remember(key, reply)
        return reply

    def _remember(self, key: RequestKey, reply: InferenceReply) -> None:
        if key not in self._done and len(reply.ciphertexts) <= self._limits.request_window_bytes:
            self._done[key] = (time.monotonic(), reply)
            self._bytes[key.tenant] += len(reply.ciphertexts)
            self._count(key, 1)
            self._forget_old()

    def _forget_old(self) -> None:
        """Those past their time; and while they are too large, the oldest of the tenant whose replies are the largest."""
        oldest_kept = time.monotonic() - self._limits.request_window_seconds
        while self._done and next(iter(self._done.values()))[0] <= oldest_kept:
            self._forget(next(iter(self._done)))
        while self._bytes.total() > self._limits.request_window_bytes:
            fullest = self._bytes.most_common(1)[0][0]
            self._forget(next(key for key in self._done if key.tenant == fullest))

    def _forget(self, key: RequestKey) -> None:
        _, reply = self._done.pop(key)
        self._count(key, -1)
        self._bytes[key.tenant] -= len(reply.ciphertexts)
        if not self._bytes[key.tenant]:
            del self._bytes[key.tenant]

    def _count(self, key: RequestKey, change: int) -> None:
        self._ids[key.tenant, key.request_id] += change
        if not self._ids[key.tenant, key.request_id]:
            del self._ids[key.tenant, key.request_id]
