"""What every refusal must look like, on the wire and in the client."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from he_runtime.errors import SecateurError
from protos.status import CODES, Failure
from tests.server.harness import failure

__all__ = ["raised", "refused"]


def _check_message(message: str) -> None:
    assert message.startswith("cannot ") and message.isprintable(), message
    assert "need" in message or "got" in message, message
    assert "try" in message, message
    assert not any(word in message for word in ("Traceback", "0x", "Error(", "std::", "File ")), message


def refused(call: Callable[[], object], reason: str, code: grpc.StatusCode | None = None) -> Failure:
    """The failure of a raw call: its reason, the code that belongs to it, and a message that helps."""
    found = failure(call)
    assert (found.reason, found.code) == (reason, code or CODES[reason]), found
    _check_message(found.message)
    return found


def raised(call: Callable[[], object], kind: type[SecateurError], reason: str) -> SecateurError:
    """The error that the client raises."""
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.reason == reason, caught.value
    _check_message(caught.value.message)
    return caught.value
