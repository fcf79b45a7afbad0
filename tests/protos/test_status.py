"""Failures survive the wire, foreign statuses are read without trust, and the table covers every reason."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from he_runtime.errors import Reason
from protos import status
from protos.status import Failure


def test_table_covers_exactly_the_closed_set_of_reasons() -> None:
    assert set(status.CODES) == {reason.value for reason in Reason}


@pytest.mark.parametrize("reason", sorted(status.CODES))
def test_failure_round_trips(reason: str) -> None:
    failure = Failure(reason, "cannot x: got 1, need 2; try 3", metadata={"committed_offset": "7"})
    assert failure.code is status.CODES[reason]
    assert status.decode(status.encode(failure)) == failure


@pytest.mark.parametrize(
    ("reason", "detail"),
    [
        ("BYTES_MALFORMED", error_details_pb2.BadRequest),
        ("LEVEL_MISMATCH", error_details_pb2.PreconditionFailure),
        ("KEY_SET_UNKNOWN", error_details_pb2.ResourceInfo),
        ("SERVER_BUSY", error_details_pb2.QuotaFailure),
    ],
)
def test_each_code_has_its_detail_with_the_subject(reason: str, detail: type) -> None:
    encoded = status.encode(Failure(reason, "m", subject="the thing", retry_after_seconds=1.25))
    assert any(packed.Is(detail.DESCRIPTOR) for packed in encoded.details)  # type: ignore[attr-defined]
    decoded = status.decode(encoded)
    assert decoded.subject == "the thing" and decoded.retry_after_seconds == 1.25


def test_a_hostile_status_is_survived() -> None:
    garbage = any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff\xff")
    unknown = any_pb2.Any(type_url="type.googleapis.com/evil.Type", value=b"\x00")
    decoded = status.decode(status_pb2.Status(code=9999, message="m", details=[garbage, unknown]))
    assert decoded.reason == "INTERNAL" and decoded.code is grpc.StatusCode.UNKNOWN


def test_a_reason_that_contradicts_its_code_or_domain_is_ignored() -> None:
    for domain, reason in (("other", "SERVER_BUSY"), ("secateur", "KEY_SET_UNKNOWN"), ("secateur", "NO_SUCH_REASON")):
        encoded = status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0])
        encoded.details.add().Pack(error_details_pb2.ErrorInfo(domain=domain, reason=reason))
        assert status.decode(encoded).reason == "SERVER_UNREACHABLE"


def test_an_endless_retry_delay_is_capped() -> None:
    assert (
        status.decode(status.encode(Failure("SERVER_BUSY", "m", retry_after_seconds=1e9))).retry_after_seconds == 3600.0
    )


class _Error(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, metadata: Any) -> None:
        self._code, self._metadata = code, metadata

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "text"

    def trailing_metadata(self) -> Any:
        return self._metadata


def test_rpc_error_with_and_without_a_rich_status() -> None:
    failure = Failure("WORKER_LOST", "m", retry_after_seconds=0.5)
    rich = _Error(grpc.StatusCode.UNAVAILABLE, status.to_trailing_metadata(status.encode(failure)))
    assert status.from_rpc_error(rich) == failure
    bare = _Error(grpc.StatusCode.RESOURCE_EXHAUSTED, None)
    assert status.from_rpc_error(bare).reason == "LIMIT_EXCEEDED"
    lying = _Error(grpc.StatusCode.NOT_FOUND, status.to_trailing_metadata(status.encode(failure)))
    assert status.from_rpc_error(lying).reason == "INTERNAL"
    broken = _Error(grpc.StatusCode.UNAVAILABLE, ((status.DETAILS_KEY, b"\xff"),))
    assert status.from_rpc_error(broken).reason == "SERVER_UNREACHABLE"
