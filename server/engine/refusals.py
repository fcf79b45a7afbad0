"""What a caller is told whose job is turned away or fails. Nothing in it says what other tenants have waiting."""

from __future__ import annotations

from he_runtime.errors import Cancelled, Reason, SecateurError

from ..errors import ServiceError
from .frames import Outcome

__all__ = [
    "error_of",
    "full_queue",
    "hopeless_deadline",
    "over_allowance",
    "over_share",
    "past_deadline",
    "stopping",
    "worker_lost",
]

_LOST_RETRY_SECONDS = 1.0
_STOPPING_RETRY_SECONDS = 1.0


def full_queue(price_ms: float, seconds: float) -> ServiceError:
    return ServiceError(
        f"cannot take the request: got a queue without room for a predicted {price_ms:.0f} ms in time, need some; try again "
        f"in about {seconds:.1f} s",
        Reason.SERVER_BUSY,
        subject="queue",
        retry_after_seconds=seconds,
    )


def over_allowance(price_ms: float, per_minute: float, seconds: float) -> ServiceError:
    return ServiceError(
        f"cannot take the request: got a predicted {price_ms:.0f} ms of evaluation, need it within the tenant's {per_minute:g} ms "
        f"per minute; try again in about {seconds:.1f} s",
        Reason.LIMIT_EXCEEDED,
        subject="quota.ms_per_minute",
        retry_after_seconds=seconds,
    )


def over_share(waiting: int, share: float, seconds: float) -> ServiceError:
    return ServiceError(
        f"cannot take the request: got {waiting} of the tenant waiting, need their number and predicted time within "
        f"{share:.0%} of the queue; try again in about {seconds:.1f} s",
        Reason.LIMIT_EXCEEDED,
        subject="quota.queue_share",
        retry_after_seconds=seconds,
    )


def hopeless_deadline(seconds: float, floor_seconds: float) -> Cancelled:
    return Cancelled(
        f"cannot finish: got a deadline of {seconds:.2f} s, need at least {floor_seconds:.2f} s; try a later one",
        Reason.DEADLINE_EXCEEDED,
    )


def past_deadline(seconds: float) -> Cancelled:
    return Cancelled(
        f"cannot finish: got a deadline of {seconds:.1f} s, which has passed; try a later one", Reason.DEADLINE_EXCEEDED
    )


def worker_lost() -> ServiceError:
    return ServiceError(
        "cannot finish: got no answer, for the worker process was lost; try again",
        Reason.WORKER_LOST,
        retry_after_seconds=_LOST_RETRY_SECONDS,
    )


def stopping() -> ServiceError:
    return ServiceError(
        "cannot take the request: got a server that is about to end; try again, at once elsewhere or here after a moment",
        Reason.SERVER_DRAINING,
        subject="server",
        retry_after_seconds=_STOPPING_RETRY_SECONDS,
    )


def error_of(outcome: Outcome) -> SecateurError:
    """The worker's error, to be raised here. A reason without a message is an internal one, already logged there."""
    if not outcome.message:
        return SecateurError(f"job {outcome.number} failed in its worker, whose log says how", Reason.INTERNAL)
    return ServiceError(outcome.message, Reason(outcome.reason))
