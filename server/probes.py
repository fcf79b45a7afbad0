"""Health checks by callers without a credential: open where probes need it, and no further.

`Check` is open. A model's own status is for callers who may use the model, and unknown to others, like the model
itself. `Watch` holds a call slot for as long as the caller likes, so it takes a credential, as everything else does.
"""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from .errors import ServiceError
from .identity.policy import Policy
from .identity.tenant import Caller
from .readiness import MODEL

__all__ = ["guarded_probe"]


def guarded_probe(handler: Any, method: str, policy: Policy) -> Any:
    """The handler of a method of grpc.health.v1.Health, for a server whose callers have credentials."""
    if handler.response_streaming:

        async def watch(request: Any, context: Any) -> None:
            caller = await _required(policy, context)
            await handler.unary_stream(_visible(request, caller), context)

        return grpc.unary_stream_rpc_method_handler(watch, handler.request_deserializer, handler.response_serializer)

    async def check(request: Any, context: Any) -> Any:
        is_open = method.endswith("/Check")
        caller = _optional(policy, context) if is_open else await _required(policy, context)
        return await handler.unary_unary(_visible(request, caller), context)

    return grpc.unary_unary_rpc_method_handler(check, handler.request_deserializer, handler.response_serializer)


def _optional(policy: Policy, context: Any) -> Caller | None:
    try:
        return policy.caller(context)
    except ServiceError:
        return None


async def _required(policy: Policy, context: Any) -> Caller:
    try:
        return policy.caller(context)
    except ServiceError as error:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, error.message)
        raise AssertionError("abort returned") from error


def _visible(request: Any, caller: Caller | None) -> Any:
    """The request, or one for a model of no name, which there cannot be."""
    name = getattr(request, "service", "")
    hidden = name.startswith(MODEL) and (caller is None or not caller.may_use(name.removeprefix(MODEL)))
    return health_pb2.HealthCheckRequest(service=MODEL) if hidden else request
