"""What a caller is told whom admission turns away. Nothing in it says what other tenants have waiting."""

from __future__ import annotations

from he_runtime.errors import Cancelled, Reason

from ..errors import ServiceError

__all__ = ["full_queue", "hopeless_deadline", "over_allowance", "over_share"]


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
