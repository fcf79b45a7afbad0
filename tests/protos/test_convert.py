"""Every native type survives its pair through bytes, field by field with values that differ from the defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from protos import convert
from protos.native import (
    CostEstimate,
    InferenceCall,
    InferenceReply,
    JobState,
    JobStatus,
    KeySetInfo,
    KeySetListing,
    LayerEstimate,
    MissingPieces,
    ModelListing,
    ModelSummary,
    ServedModel,
    ServerInfo,
    SubmittedJob,
    Timings,
    UploadInfo,
    UploadOffer,
)

SERVER = ServerInfo("0.1.0", 1, 2**33, 2**34, 2**20, 2**12)
SUMMARY = ModelSummary("digits", ("1", "2"), "2")
KEYS = KeySetInfo("k" * 32, "ab" * 32, 2**40, "cd" * 32, "ef" * 32, "01" * 32, 2**41, 2**42, 2**43, True)
CASES: dict[str, Any] = {
    "server_info": SERVER,
    "model_summary": SUMMARY,
    "model_listing": ModelListing((SUMMARY, ModelSummary("mlp", ("1",), "1")), SERVER),
    "served_model": ServedModel(SUMMARY, "1", b"{}", "aa", "bb", "cc", SERVER),
    "cost_estimate": CostEstimate(
        "digits",
        "1",
        12.5,
        1,
        2,
        3,
        {"ntt": 2**40},
        {"ntt": 2**41},
        "table",
        10.0,
        15.0,
        "calibrated",
        (LayerEstimate("fc1", 7.5, 7.0, 8.0), LayerEstimate("fc2", 5.0, 3.0, 7.0)),
        2**33,
        45,
        1,
        0.25,
    ),
    "upload_offer": UploadOffer("aa", "bb", 2**35, "cc", b"\x01" * 40, b"\x01"),
    "upload": UploadInfo("u" * 32, 2**35, 2**34, (0, 7, 2**31)),
    "key_set": KEYS,
    "key_set_listing": KeySetListing((KEYS, KeySetInfo("", "ab" * 32, 1, "cd" * 32, "ef" * 32)), "01" * 32),
    "inference_call": InferenceCall("digits", "1", "dd", "kk", b"\x00\xff", "rr"),
    "job_status": JobStatus(JobState.FAILED, 2, 3, "fc1", 2**40, 2**41, 1.5, "WORKER_LOST", "lost"),
    "submitted_job": SubmittedJob("j" * 32, JobStatus(JobState.RUNNING, 1, 3, "fc1", 5, 7, 0.5)),
    "timings": Timings(1.5, 2.5, 3.5),
    "inference_reply": InferenceReply(b"\x01", "digits", "1", "pp", Timings(1.5, 2.5, 3.5), {"ntt": 4}, "0.1.0", 1),
}


@pytest.mark.parametrize("name", CASES)
def test_pair_round_trips(name: str) -> None:
    to_proto: Callable[[Any], Message] = getattr(convert, f"{name}_to_proto")
    from_proto: Callable[[Any], Any] = getattr(convert, f"{name}_from_proto")
    message = to_proto(CASES[name])
    assert len(message.ListFields()) == len(message.DESCRIPTOR.fields), "a field of the message is left out of the pair"
    parsed = type(message).FromString(message.SerializeToString())
    assert from_proto(parsed) == CASES[name]


@pytest.mark.parametrize(
    "result",
    [CASES["upload"], KEYS, MissingPieces((0, 7)), MissingPieces(())],
    ids=["upload", "key_set", "lacking", "no"],
)
def test_offer_reply_round_trips(result: UploadInfo | KeySetInfo | MissingPieces) -> None:
    assert convert.offer_reply_from_proto(convert.offer_reply_to_proto(result)) == result


def test_every_pair_has_a_case() -> None:
    named = {n.removesuffix("_to_proto") for n in convert.__all__ if n.endswith("_to_proto")} - {"offer_reply"}
    assert named == set(CASES)


def test_capabilities_stay_out_of_repr() -> None:
    for native in (CASES["upload"], KEYS, CASES["inference_call"], CASES["submitted_job"]):
        text = repr(native)
        assert "j" * 32 not in text
        assert "u" * 32 not in text and "k" * 32 not in text and "kk" not in text


def test_every_state_of_a_job_crosses_and_a_later_one_is_not_final() -> None:
    for state in JobState:
        assert convert.job_status_from_proto(convert.job_status_to_proto(JobStatus(state))) == JobStatus(state)
    unknown = convert.job_status_to_proto(JobStatus(JobState.FAILED))
    unknown.state = 99  # type: ignore[assignment]
    assert not convert.job_status_from_proto(unknown).state.is_final
