"""What surrounds every call: it gets a caller or is refused, errors become statuses, and it becomes a line in the log.

An error of the tree crosses the network with its reason and message. Anything else is INTERNAL with an incident id, under
which the log has the traceback; no text of a library leaves the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, cast

import grpc
from google.protobuf.message import DecodeError

from he_runtime.errors import Cancelled, Reason, SecateurError, WireError
from protos import status
from protos.status import Failure

from .calls import Call
from .errors import ServiceError, storage_failure
from .guard import OPEN, Guard
from .identity.tenant import acting_as
from .observe.events import Observer, nobody
from .observe.logs import event
from .probes import guarded_probe

__all__ = ["Boundary", "failure_of"]

_HEALTH = "/grpc.health."
_REFLECTION = "/grpc.reflection."
_MAX_MESSAGE = 1000  # statuses travel in HTTP/2 headers, which are limited to some 8 KiB
Handler = Callable[[Any, Any], Awaitable[Any]]


def failure_of(error: BaseException) -> tuple[Failure, str]:
    """(what the caller is told, incident id or "")."""
    if isinstance(error, SecateurError) and error.reason is not Reason.INTERNAL:
        subject, retry, metadata = "", None, {}
        if isinstance(error, ServiceError):
            subject, retry, metadata = error.subject, error.retry_after_seconds, error.metadata
        return Failure(error.reason.value, error.message[:_MAX_MESSAGE], subject, retry, metadata), ""
    incident = secrets.token_hex(6)
    message = f"cannot finish: an internal error; try again, and report incident {incident} to the server's operator"
    return Failure(Reason.INTERNAL.value, message, metadata={"incident": incident}), incident


class Boundary(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps every handler but health's, which `probes` guards, and reflection's where that is open to all.

    The caller is known before the request is read. Every request is read here, unary ones included, so that a message
    which does not arrive, or is no protobuf, gets an answer like any other error instead of a call slot for as long as
    the caller likes.
    """

    def __init__(self, receive_seconds: float, observer: Observer = nobody, guard: Guard = OPEN) -> None:
        self._receive_seconds = receive_seconds
        self._observer = observer
        self._guard = guard

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        policy = self._guard.policy
        open_to_all = policy.open_to_all or (policy.open_reflection and method.startswith(_REFLECTION))
        if handler is None or (open_to_all and method.startswith((_HEALTH, _REFLECTION))):
            return cast("grpc.RpcMethodHandler[Any, Any]", handler)
        if method.startswith(_HEALTH):
            return cast("grpc.RpcMethodHandler[Any, Any]", guarded_probe(handler, method, policy))
        call = Call(method.rpartition(".")[2], self._observer, self._guard)
        # On the wire a unary request is a stream of one message.
        if handler.response_streaming:
            streaming: Any = _wrap_stream(handler, call, self._receive_seconds)
            return grpc.stream_stream_rpc_method_handler(streaming, None, handler.response_serializer)
        wrapped: Any = _wrap(handler, call, self._receive_seconds)
        return grpc.stream_unary_rpc_method_handler(wrapped, None, handler.response_serializer)


def _wrap(handler: Any, call: Call, receive_seconds: float) -> Handler:
    async def handle(incoming: AsyncIterator[bytes], context: Any) -> Any:
        requests = _requests(incoming, handler.request_deserializer, receive_seconds, call)
        try:
            with acting_as(call.identify(context)):
                await call.admit()
                if handler.request_streaming:
                    reply = await handler.stream_unary(requests, context)
                else:
                    reply = await handler.unary_unary(await _only(requests), context)
            call.sent_bytes = reply.ByteSize()
            await call.succeeded()
        except asyncio.CancelledError:
            call.failed("CANCELLED")
            raise
        except Exception as error:
            await _abort(error, context, call)
        call.ended("")
        return reply

    return handle


def _wrap_stream(handler: Any, call: Call, receive_seconds: float) -> Callable[[Any, Any], AsyncIterator[Any]]:
    """The same for a reply of many messages, each of which is sent before the next is asked for."""

    async def handle(incoming: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        requests = _requests(incoming, handler.request_deserializer, receive_seconds, call)
        try:
            with acting_as(call.identify(context)):
                await call.admit()
                if handler.request_streaming:
                    replies = handler.stream_stream(requests, context)
                else:
                    replies = handler.unary_stream(await _only(requests), context)
                async with contextlib.aclosing(replies):  # at once: what it holds is not left to the garbage collector
                    async for reply in replies:
                        call.sent_bytes += reply.ByteSize()
                        yield reply
            await call.succeeded()
        except (asyncio.CancelledError, GeneratorExit):
            call.failed("CANCELLED")
            raise
        except Exception as error:
            await _abort(error, context, call)
        call.ended("")

    return handle


async def _requests(
    incoming: AsyncIterator[bytes], parse: Callable[[bytes], Any], seconds: float, call: Call
) -> AsyncIterator[Any]:
    """The caller's messages, parsed, each of which must arrive whole within `seconds` of the one before."""
    receive = aiter(incoming)
    while True:
        try:
            async with asyncio.timeout(seconds):
                data = await anext(receive)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Cancelled(
                f"cannot receive the request: got no whole message within {seconds:g} s; try again, on a faster connection",
                Reason.DEADLINE_EXCEEDED,
            ) from None
        try:
            message = parse(data)
        except DecodeError:
            raise WireError(
                f"cannot read the request: got {len(data)} bytes that are not its protobuf message; try a client of the "
                "server's version"
            ) from None
        call.received(message, len(data))
        yield message


async def _only(requests: AsyncIterator[Any]) -> Any:
    async for request in requests:
        return request
    raise WireError("cannot answer: got a call without a request, need one; try again", Reason.BYTES_TRUNCATED)


async def _abort(error: Exception, context: Any, call: Call) -> NoReturn:
    stored = storage_failure(error)
    failure, incident = failure_of(stored or error)
    if stored is not None:
        event("storage", level=logging.ERROR, cause=str(error), method=call.method)
    if incident:
        event("incident", level=logging.ERROR, error=error, incident=incident, method=call.method)
    call.failed(failure.reason, getattr(error, "cause", ""), incident)
    trailing = status.to_trailing_metadata(status.encode(failure))
    try:
        await context.abort(failure.code, failure.message, trailing)
    except grpc.aio.InternalError:  # the caller has left meanwhile; gRPC would log its own traceback
        raise asyncio.CancelledError from None
    raise AssertionError("abort returned")
