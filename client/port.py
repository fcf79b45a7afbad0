"""Between what a client does and how it waits.

The flows of a client (`core`, and the retries here) are written once, as coroutines over a Port. The asyncio client awaits
them. The blocking client's port never suspends, so that `drive` runs the same coroutine to its end in one step.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

import grpc

from protos.native import JobStatus
from protos.status import Failure, from_rpc_error

from . import calls
from .calls import Call
from .retry import Budget, typed, wait_before_retry
from .tracing import trace_metadata

__all__ = ["Metadata", "Port", "ask", "drive", "watch"]

T = TypeVar("T")
P = TypeVar("P")
Metadata = tuple[tuple[str, str], ...]


class Port(Protocol):
    """One server, and a way to wait for it."""

    address: str

    async def once(self, call: Call[Any], seconds: float, metadata: Metadata) -> Any:
        """The reply of one attempt; grpc.RpcError. Leaving it by another exception cancels the call at the server."""

    def stream(self, call: Call[Any], seconds: float, metadata: Metadata) -> AsyncGenerator[Any, None]:
        """The replies of one attempt at a streaming call; closing it cancels the call."""

    async def token(self, refused: str | None = None) -> str | None:
        """The bearer token to show, or another one than the `refused`; None where there is none."""

    async def sleep(self, seconds: float) -> None: ...

    async def compute(self, work: Callable[[], T]) -> T:
        """Encrypt or decrypt: one at a time, and never on an event loop."""

    async def blocking(self, work: Callable[[Any], T], budget: Budget) -> T:
        """Run `work` with the blocking typed calls (transport.Calls) of this server: uploads."""

    async def each(
        self, parts: Sequence[P], work: Callable[[P], Awaitable[T]], most: int, done: Callable[[P, T], bool]
    ) -> None:
        """`work` on every part, at most so many at once, and `done` on each result as it comes; when that says False, no
        further part is begun. An exception of either cancels what is under way."""


def drive(coroutine: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    """The result of a coroutine over a port that never suspends."""
    steps: Any = coroutine if hasattr(coroutine, "send") else coroutine.__await__()
    try:
        steps.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    steps.close()
    raise RuntimeError("a blocking port has suspended")


async def ask(port: Port, call: Call[T], budget: Budget) -> T:
    """The reply to a call, tried again as `retry` says; ServerError.

    A call whose token is refused is made once more where another token can be had: the server refuses before it reads.
    """
    deadline, trace = budget.deadline(call.long), trace_metadata()
    token, renewed, attempt = await port.token(), False, 0
    while True:
        try:
            left = max(deadline - time.monotonic(), 0.001)
            return call.read(await port.once(call, left, _shown(trace, token)))
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
        if failure.code is grpc.StatusCode.UNAUTHENTICATED and token is not None and not renewed:
            renewed = True
            if (another := await port.token(refused=token)) is not None:
                token = another
                continue
        wait = wait_before_retry(call, failure, attempt, budget, deadline)
        if wait is None:
            raise typed(call.what, port.address, failure)
        attempt += 1
        await port.sleep(wait)


async def watch(port: Port, job_id: str, budget: Budget) -> AsyncGenerator[JobStatus, None]:
    """A job's statuses until the final one, also through a server's restart; ServerError.

    Retries are counted anew with every status that comes. A stream that outlasts `budget.seconds` is opened again.
    """
    call, attempt = calls.watch_job(job_id), 0
    while True:
        deadline = budget.deadline(call.long)
        shown = _shown(trace_metadata(), await port.token())
        failure = Failure("SERVER_UNREACHABLE", "the job's watch ended early", code=grpc.StatusCode.UNAVAILABLE)
        try:
            left = max(deadline - time.monotonic(), 0.001)
            async with aclosing(port.stream(call, left, shown)) as replies:
                async for reply in replies:
                    status, attempt = call.read(reply), 0
                    yield status
                    if status.state.is_final:
                        return
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
        if failure.code is grpc.StatusCode.DEADLINE_EXCEEDED and time.monotonic() < budget.until - 0.01:
            continue
        wait = wait_before_retry(call, failure, attempt, budget, budget.until)
        if wait is None:
            raise typed(call.what, port.address, failure)
        attempt += 1
        await port.sleep(wait)


def _shown(trace: Metadata, token: str | None) -> Metadata:
    return trace if token is None else (*trace, ("authorization", f"Bearer {token}"))
