"""What is tried again, when, and as which error it ends: the one policy of the blocking and the asyncio client.

Tried again is what may go better: a server that is busy, draining, restarting or has lost a worker, and whatever else it
says a time to come back for. Never what an equal request would get again (INVALID_ARGUMENT and its kin). The wait before
attempt k is drawn from 0 to 0.2 * 2^k s (at most 10 s), "full jitter", so that clients turned away together do not come
back together; a server's RetryInfo is waited for besides. A wait that would outlast the caller's deadline is not begun.
"""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, replace
from typing import Any

import grpc

from he_runtime.errors import Reason
from protos.status import Failure

from .calls import Call
from .errors import DeadlineExceeded, NotAuthenticated, NotPermitted, ServerBusy, ServerError, ServerUnreachable

__all__ = ["RETRIES", "Budget", "typed", "wait_before_retry"]

RETRIES = 5  # after the first attempt
_BACKOFF_SECONDS = 0.2
_MOST_BACKOFF_SECONDS = 10.0
_CONTROL_SECONDS = 30.0  # of calls that evaluate nothing
_MAX_TEXT_CHARS = 400
_CODE = grpc.StatusCode
_KINDS: dict[grpc.StatusCode, type[ServerError]] = {
    _CODE.UNAUTHENTICATED: NotAuthenticated,
    _CODE.PERMISSION_DENIED: NotPermitted,
    _CODE.DEADLINE_EXCEEDED: DeadlineExceeded,
}


@dataclass(frozen=True)
class Budget:
    """How long and how often: `seconds` for one request with its retries, `until` (monotonic) for all of them."""

    seconds: float = 300.0
    retries: int = RETRIES
    until: float = math.inf

    def for_call(self, timeout: float | None, retries: int | None) -> Budget:
        """The same with what a caller states for one call, whose timeout counts from now."""
        budget = self if retries is None else replace(self, retries=retries)
        return budget if timeout is None else replace(budget, seconds=timeout, until=time.monotonic() + timeout)

    def waiting(self, timeout: float | None) -> Budget:
        """The same for something that may take longer than any request, until `timeout` from now if that is stated."""
        return self if timeout is None else replace(self, until=time.monotonic() + timeout)

    def deadline(self, long: bool) -> float:
        """When a request that begins now is given up, by the monotonic clock."""
        return min(time.monotonic() + (self.seconds if long else min(self.seconds, _CONTROL_SECONDS)), self.until)


def wait_before_retry(call: Call[Any], failure: Failure, attempt: int, budget: Budget, deadline: float) -> float | None:
    """Seconds to wait after `attempt` (from 0) has failed; None when it is the last."""
    if not call.retried or attempt >= budget.retries or not _may_go_better(call, failure):
        return None
    backoff = random.uniform(0.0, min(_MOST_BACKOFF_SECONDS, _BACKOFF_SECONDS * 2.0**attempt))
    wait = (failure.retry_after_seconds or 0.0) + backoff
    return wait if time.monotonic() + wait < deadline else None


def _may_go_better(call: Call[Any], failure: Failure) -> bool:
    if failure.code is _CODE.RESOURCE_EXHAUSTED:  # a quota refills where the server says when; a size limit does not
        return failure.reason == Reason.SERVER_BUSY or failure.retry_after_seconds is not None
    return failure.code is _CODE.UNAVAILABLE or (failure.code is _CODE.CANCELLED and call.by_request_id)


def typed(what: str, address: str, failure: Failure) -> ServerError:
    """The error that a caller gets for a failure, whose text it quotes made printable and short."""
    reason = Reason(failure.reason) if failure.reason in Reason.__members__ else Reason.INTERNAL
    said = "".join(c if c.isprintable() else " " for c in failure.message[:_MAX_TEXT_CHARS])
    code, retry_after = failure.code.name, failure.retry_after_seconds
    if failure.code is _CODE.UNAVAILABLE and reason is not Reason.WORKER_LOST:
        return ServerUnreachable(
            f"cannot {what}: no answer from {address} ({said}), need a running server; try its address and port, and "
            "certificate= if it serves TLS, client_certificate= if it asks for one",
            code=code,
            retry_after=retry_after,
        )
    kind = _KINDS.get(failure.code, ServerError)
    if failure.code is _CODE.RESOURCE_EXHAUSTED and (reason is Reason.SERVER_BUSY or retry_after is not None):
        kind = ServerBusy
    message = f"cannot {what}: the server answered {reason.value}: {said}"
    return kind(message, reason, code=code, retry_after=retry_after)
