"""Errors on the wire: google.rpc.Status with ErrorInfo, and the one table from reasons to gRPC codes.

The server encodes, the client decodes; both hold a `Failure`. Reasons are the names of he_runtime.errors.Reason, as
strings because this package depends on nothing of ours (a test compares the two sets). Besides ErrorInfo a status
carries the detail that its code calls for: BadRequest, PreconditionFailure, ResourceInfo, QuotaFailure, RetryInfo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

__all__ = ["CODES", "DOMAIN", "Failure", "code_of", "decode", "encode", "from_rpc_error", "to_trailing_metadata"]

DOMAIN = "secateur"
DETAILS_KEY = "grpc-status-details-bin"  # fixed by gRPC's rich error model
_MAX_RETRY_SECONDS = 3600.0  # a client does not let a server park it for longer

_Code = grpc.StatusCode
CODES: dict[str, grpc.StatusCode] = {
    "INTERNAL": _Code.INTERNAL,
    "MODEL_INVALID": _Code.FAILED_PRECONDITION,
    "MODEL_UNSUPPORTED": _Code.FAILED_PRECONDITION,
    "MODEL_UNKNOWN": _Code.NOT_FOUND,
    "MODEL_DOES_NOT_FIT": _Code.FAILED_PRECONDITION,
    "PLAN_INVALID": _Code.FAILED_PRECONDITION,
    "PLAN_VERSION_UNKNOWN": _Code.FAILED_PRECONDITION,
    "PARAMETERS_INVALID": _Code.FAILED_PRECONDITION,
    "PARAMETERS_INSECURE": _Code.FAILED_PRECONDITION,
    "BYTES_MALFORMED": _Code.INVALID_ARGUMENT,
    "BYTES_TRUNCATED": _Code.INVALID_ARGUMENT,
    "DIGEST_MISMATCH": _Code.DATA_LOSS,
    "RESIDUE_OUT_OF_RANGE": _Code.INVALID_ARGUMENT,
    "VERSION_UNKNOWN": _Code.FAILED_PRECONDITION,
    "LEVEL_MISMATCH": _Code.FAILED_PRECONDITION,
    "SCALE_MISMATCH": _Code.FAILED_PRECONDITION,
    "SIZE_MISMATCH": _Code.FAILED_PRECONDITION,
    "KEY_MISSING": _Code.FAILED_PRECONDITION,
    "KEY_SET_UNKNOWN": _Code.NOT_FOUND,
    "KEY_PARAMETERS_DIFFER": _Code.FAILED_PRECONDITION,
    "UPLOAD_UNKNOWN": _Code.NOT_FOUND,
    "UPLOAD_INCOMPLETE": _Code.FAILED_PRECONDITION,
    "UPLOAD_OFFSET_WRONG": _Code.FAILED_PRECONDITION,
    "JOB_UNKNOWN": _Code.NOT_FOUND,
    "JOB_UNFINISHED": _Code.FAILED_PRECONDITION,
    "LIMIT_EXCEEDED": _Code.RESOURCE_EXHAUSTED,
    "INPUT_SHAPE": _Code.INVALID_ARGUMENT,
    "INPUT_NOT_FINITE": _Code.INVALID_ARGUMENT,
    "INPUT_OUT_OF_RANGE": _Code.INVALID_ARGUMENT,
    "BACKEND_UNAVAILABLE": _Code.FAILED_PRECONDITION,
    "SERVER_BUSY": _Code.RESOURCE_EXHAUSTED,
    "SERVER_DRAINING": _Code.UNAVAILABLE,
    "SERVER_UNREACHABLE": _Code.UNAVAILABLE,
    "SERVER_UNTRUSTED": _Code.FAILED_PRECONDITION,
    "UNAUTHENTICATED": _Code.UNAUTHENTICATED,
    "PERMISSION_DENIED": _Code.PERMISSION_DENIED,
    "STORE_UNAVAILABLE": _Code.UNAVAILABLE,
    "WORKER_LOST": _Code.UNAVAILABLE,
    "DEADLINE_EXCEEDED": _Code.DEADLINE_EXCEEDED,
    "CANCELLED": _Code.CANCELLED,
}

# What a bare status means when gRPC itself made it (connection lost, message over the limit, deadline passed).
_BARE = {
    _Code.RESOURCE_EXHAUSTED: "LIMIT_EXCEEDED",
    _Code.UNAVAILABLE: "SERVER_UNREACHABLE",
    _Code.DEADLINE_EXCEEDED: "DEADLINE_EXCEEDED",
    _Code.CANCELLED: "CANCELLED",
    _Code.DATA_LOSS: "DIGEST_MISMATCH",
    _Code.UNAUTHENTICATED: "UNAUTHENTICATED",
    _Code.PERMISSION_DENIED: "PERMISSION_DENIED",
}
_CODE_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True)
class Failure:
    """An error as it crosses the network.

    `subject` names what it is about: a request field, a model, a key set (never an id that is a capability).
    `retry_after_seconds` is set where trying again may help. `metadata` holds further facts, such as the
    "committed_offset" of an upload or the "incident" of an internal error.
    """

    reason: str
    message: str
    subject: str = ""
    retry_after_seconds: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    code: grpc.StatusCode = _Code.INTERNAL

    def __post_init__(self) -> None:
        if self.code is _Code.INTERNAL:
            object.__setattr__(self, "code", code_of(self.reason))


def code_of(reason: str) -> grpc.StatusCode:
    """The gRPC code of a reason; INTERNAL for one outside the closed set."""
    return CODES.get(reason, _Code.INTERNAL)


def encode(failure: Failure) -> status_pb2.Status:
    status = status_pb2.Status(code=failure.code.value[0], message=failure.message)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=failure.reason, domain=DOMAIN, metadata=dict(failure.metadata))
    ]
    specific = _specific_detail(failure)
    if specific is not None:
        details.append(specific)
    if failure.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(max(1, round(failure.retry_after_seconds * 1000)))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        status.details.add().Pack(detail)
    return status


def _specific_detail(failure: Failure) -> Message | None:
    subject, text = failure.subject, failure.message
    detail: Message | None = None
    if failure.code is _Code.INVALID_ARGUMENT:
        violation = error_details_pb2.BadRequest.FieldViolation(field=subject, description=text)
        detail = error_details_pb2.BadRequest(field_violations=[violation])
    elif failure.code is _Code.FAILED_PRECONDITION:
        unmet = error_details_pb2.PreconditionFailure.Violation(type=failure.reason, subject=subject, description=text)
        detail = error_details_pb2.PreconditionFailure(violations=[unmet])
    elif failure.code is _Code.RESOURCE_EXHAUSTED:
        over = error_details_pb2.QuotaFailure.Violation(subject=subject, description=text)
        detail = error_details_pb2.QuotaFailure(violations=[over])
    elif failure.code is _Code.NOT_FOUND:
        kind = failure.reason.removesuffix("_UNKNOWN").lower()
        detail = error_details_pb2.ResourceInfo(resource_type=kind, resource_name=subject, description=text)
    return detail


def decode(status: status_pb2.Status) -> Failure:
    """Read a status that may come from a hostile or foreign server: unknown details and reasons are survived."""
    code = _CODE_BY_NUMBER.get(status.code, _Code.UNKNOWN)
    reason, subject = _BARE.get(code, "INTERNAL"), ""
    retry: float | None = None
    metadata: dict[str, str] = {}
    for packed in status.details:
        info, delay = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        try:
            if packed.Unpack(info) and info.domain == DOMAIN and code_of(info.reason) is code:
                reason, metadata = info.reason, dict(info.metadata)
            elif packed.Unpack(delay):
                seconds = delay.retry_delay.seconds + delay.retry_delay.nanos / 1e9
                retry = min(max(seconds, 0.0), _MAX_RETRY_SECONDS)
            else:
                subject = _subject_of(packed) or subject
        except DecodeError:
            continue
    return Failure(reason, status.message, subject, retry, metadata, code)


def _subject_of(packed: any_pb2.Any) -> str:
    bad, unmet = error_details_pb2.BadRequest(), error_details_pb2.PreconditionFailure()
    over, resource = error_details_pb2.QuotaFailure(), error_details_pb2.ResourceInfo()
    subjects: list[str] = []
    if packed.Unpack(bad):
        subjects = [violation.field for violation in bad.field_violations]
    elif packed.Unpack(unmet):
        subjects = [violation.subject for violation in unmet.violations]
    elif packed.Unpack(over):
        subjects = [violation.subject for violation in over.violations]
    elif packed.Unpack(resource):
        subjects = [resource.resource_name]
    return subjects[0] if subjects else ""


def to_trailing_metadata(status: status_pb2.Status) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries a status beside the plain gRPC code and message."""
    return ((DETAILS_KEY, status.SerializeToString()),)


def from_rpc_error(error: grpc.RpcError) -> Failure:
    """The failure behind an RpcError of either API (grpc or grpc.aio), with or without a rich status."""
    code = error.code() if hasattr(error, "code") else _Code.UNKNOWN
    message = (error.details() if hasattr(error, "details") else None) or code.name
    # Pairs of key and value in both APIs; the stubs know only the synchronous one's named tuple.
    trailing: Any = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    for key, value in trailing or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break
            if status.code == code.value[0]:
                return decode(status)
    return Failure(_BARE.get(code, "INTERNAL"), message, code=code)
