"""The gate that calls pass: it counts those under way, and once closed lets no new ones in, so that a server can drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, cast

import grpc

from he_runtime.errors import Reason
from protos import status

from .errors import ServiceError
from .interceptors import failure_of

__all__ = ["Gate"]

_INFRASTRUCTURE = "/grpc."  # health and reflection tell callers that the server drains
_FINISHING = frozenset({"WatchJob", "GetResult", "CancelJob"})  # calls about work that was accepted before
_RETRY_SECONDS = 1.0  # another server, or this one's successor, is there by then or soon


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """The outermost interceptor. While it is closed, new calls get UNAVAILABLE (SERVER_DRAINING) with RetryInfo at once."""

    def __init__(self) -> None:
        self._under_way = 0
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def under_way(self) -> int:
        """Calls that were let in and are not answered yet."""
        return self._under_way

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Let no further calls in."""
        self._closed = True

    async def empty(self) -> None:
        """Return once no call is under way."""
        await self._empty.wait()

    def _let_in(self, context: Any) -> None:
        """Count a call until its answer has been sent, which is after its handler has returned."""
        self._under_way += 1
        self._empty.clear()
        context.add_done_callback(self._let_out)

    def _let_out(self, context: Any) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._empty.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        method = handler_call_details.method
        handler: Any = await continuation(handler_call_details)
        if handler is None or method.startswith(_INFRASTRUCTURE):
            return cast("grpc.RpcMethodHandler[Any, Any]", handler)
        if self._closed and method.rpartition("/")[2] not in _FINISHING:
            return grpc.stream_unary_rpc_method_handler(cast(Any, _refuse))
        return self._counted(handler)

    def _counted(self, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        """`handler`, as the boundary makes them: a stream of requests, and one reply or a stream of them."""
        made: Any
        if handler.response_streaming:

            async def stream(requests: Any, context: Any) -> AsyncIterator[Any]:
                self._let_in(context)
                async with aclosing(handler.stream_stream(requests, context)) as replies:
                    async for reply in replies:
                        yield reply

            made = grpc.stream_stream_rpc_method_handler(
                cast(Any, stream), handler.request_deserializer, handler.response_serializer
            )
            return cast("grpc.RpcMethodHandler[Any, Any]", made)

        async def answer(requests: Any, context: Any) -> Any:
            self._let_in(context)
            return await handler.stream_unary(requests, context)

        made = grpc.stream_unary_rpc_method_handler(
            cast(Any, answer), handler.request_deserializer, handler.response_serializer
        )
        return cast("grpc.RpcMethodHandler[Any, Any]", made)


async def _refuse(requests: Any, context: Any) -> NoReturn:
    error = ServiceError(
        "cannot take the call: got a server that is about to end; try again, at once elsewhere or here after a moment",
        Reason.SERVER_DRAINING,
        subject="server",
        retry_after_seconds=_RETRY_SECONDS,
    )
    failure, _ = failure_of(error)
    await context.abort(failure.code, failure.message, status.to_trailing_metadata(status.encode(failure)))
    raise AssertionError("abort returned")
