"""The administrator's messages: every native type survives its pair, and the bytes are what they have always been."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from protos import admin
from protos.admin import ModelVersion, ServerStats, VersionState, WorkerStats

WORKER = WorkerStats(3, True, 2, 2**33, 7, 8, 9)
CASES: dict[str, Any] = {
    "model_version": ModelVersion(
        "digits", "2", VersionState.REFUSED, True, "DIGEST_MISMATCH", "why", "aa", "bb", "cc", 2**33, 2**34
    ),
    "worker_stats": WORKER,
    "server_stats": ServerStats(
        "0.1.0", 12.5, ("draining",), 4, 5, 6.5, (WORKER, WorkerStats(4)), 2**40, {"running": 1}, {"": 10}
    ),
}
GOLDEN = {
    "model_version": "0a06646967697473120132180220012a0f4449474553545f4d49534d415443483203776879"
    "3a02616142026262" + "4a026363" + "508080808020" + "588080808040",
    "worker_stats": "08031001180220808080802028073008" + "3809",
}


@pytest.mark.parametrize("name", CASES)
def test_pair_round_trips(name: str) -> None:
    to_proto: Callable[[Any], Message] = getattr(admin, f"{name}_to_proto")
    from_proto: Callable[[Any], Any] = getattr(admin, f"{name}_from_proto")
    message = to_proto(CASES[name])
    assert len(message.ListFields()) == len(message.DESCRIPTOR.fields), "a field of the message is left out of the pair"
    assert from_proto(type(message).FromString(message.SerializeToString())) == CASES[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_bytes_stay_what_they_are(name: str) -> None:
    message: Message = getattr(admin, f"{name}_to_proto")(CASES[name])
    assert message.SerializeToString(deterministic=True).hex() == GOLDEN[name]


@pytest.mark.parametrize("state", VersionState)
def test_every_state_has_a_number_of_its_own(state: VersionState) -> None:
    version = ModelVersion("m", "1", state)
    assert admin.model_version_from_proto(admin.model_version_to_proto(version)) == version


def test_a_state_of_a_later_build_is_not_taken_for_served() -> None:
    message = admin.model_version_to_proto(ModelVersion("m", "1", VersionState.SERVED))
    message.state = 99  # type: ignore[assignment]  # from the future
    assert admin.model_version_from_proto(message).state is VersionState.PRESENT


def test_every_pair_has_a_case() -> None:
    assert {n.removesuffix("_to_proto") for n in admin.__all__ if n.endswith("_to_proto")} == set(CASES)
