"""The asyncio Port: grpc.aio for calls, threads for what computes or reads files."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc

from .calls import Call, Stubs
from .credentials import TokenSource
from .port import Metadata, ask
from .retry import RETRIES, Budget
from .transport import Calls, given_up

__all__ = ["AioTransport"]

T = TypeVar("T")
P = TypeVar("P")


class AioTransport:
    """One server over one grpc.aio channel. Belongs to one event loop, which nothing here blocks."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        address: str,
        *,
        timeout_seconds: float,
        token: TokenSource | None = None,
        retries: int = RETRIES,
    ) -> None:
        self.address = address
        self.budget = Budget(timeout_seconds, retries)
        self._channel = channel
        self._token = token
        self._stubs = Stubs(channel)
        self._computing = asyncio.Lock()

    async def close(self) -> None:
        await self._channel.close(None)

    async def once(self, call: Call[Any], seconds: float, metadata: Metadata) -> Any:
        message = call.request() if callable(call.request) else call.request
        return await call.method(self._stubs)(message, timeout=seconds, metadata=metadata)  # cancelled with this task

    async def stream(self, call: Call[Any], seconds: float, metadata: Metadata) -> AsyncGenerator[Any, None]:
        replies = call.method(self._stubs)(call.request, timeout=seconds, metadata=metadata)
        try:
            async for reply in replies:
                yield reply
        finally:
            replies.cancel()

    async def token(self, refused: str | None = None) -> str | None:
        if self._token is None:
            return None
        source = self._token  # may read a file, or ask an identity provider
        return await asyncio.to_thread(lambda: source.current() if refused is None else source.after_refusal(refused))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def compute(self, work: Callable[[], T]) -> T:
        async with self._computing:
            return await asyncio.to_thread(work)

    async def blocking(self, work: Callable[[Any], T], budget: Budget) -> T:
        bridge = _Bridge(self, budget)
        try:
            return await asyncio.to_thread(work, bridge)
        finally:
            bridge.close()  # where this task was cancelled, the thread ends at its next call

    async def each(
        self, parts: Sequence[P], work: Callable[[P], Awaitable[T]], most: int, done: Callable[[P, T], bool]
    ) -> None:
        waiting, running, go_on = list(reversed(parts)), dict[asyncio.Future[T], P](), True
        try:
            while running or (go_on and waiting):
                while go_on and waiting and len(running) < most:
                    part = waiting.pop()
                    running[asyncio.ensure_future(work(part))] = part
                finished, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for future in finished:
                    go_on = done(running.pop(future), future.result()) and go_on
        finally:
            for future in running:
                future.cancel()
            await asyncio.gather(*running, return_exceptions=True)


class _Bridge(Calls):
    """Blocking calls for a thread, carried out on the loop's own channel."""

    def __init__(self, transport: AioTransport, budget: Budget) -> None:
        self._transport = transport
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._closed = False
        self._under_way: concurrent.futures.Future[Any] | None = None

    def ask(self, call: Call[T]) -> T:
        with self._lock:
            if self._closed:
                raise given_up()
            future = asyncio.run_coroutine_threadsafe(ask(self._transport, call, self._budget), self._loop)
            self._under_way = future
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise given_up() from None

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._under_way is not None:
                self._under_way.cancel()
