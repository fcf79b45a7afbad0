"""Every call to a server as data: its method, its request and how its reply is read. Whoever carries it out decides how to wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from protos import convert
from protos.gen.secateur.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    keys_pb2,
    keys_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)
from protos.native import (
    CostEstimate,
    InferenceCall,
    InferenceReply,
    JobStatus,
    KeySetInfo,
    KeySetListing,
    MissingPieces,
    ModelListing,
    ServedModel,
    SubmittedJob,
    UploadInfo,
    UploadOffer,
)

__all__ = [
    "Call",
    "Stubs",
    "cancel_job",
    "commit_upload",
    "create_upload",
    "delete_key_set",
    "estimate",
    "get_key_set",
    "get_model",
    "get_result",
    "get_upload",
    "infer",
    "list_key_sets",
    "list_models",
    "submit_job",
    "upload_chunks",
    "watch_job",
]

T = TypeVar("T")


class Stubs:
    """The services of one channel, blocking or asyncio."""

    def __init__(self, channel: Any) -> None:
        self.models = model_pb2_grpc.ModelServiceStub(channel)
        self.keys = keys_pb2_grpc.KeyServiceStub(channel)
        self.inference = inference_pb2_grpc.InferenceServiceStub(channel)


@dataclass(frozen=True)
class Call(Generic[T]):
    """One call. `what` completes "cannot ..."; a `request` that is callable makes the messages of a stream, anew each time.

    `long` calls may take the client's whole timeout. `retried` ones may be repeated without harm; `by_request_id`, even
    when they ended as cancelled, for the server knows an equal request again.
    """

    what: str
    method: Callable[[Stubs], Any]
    request: Any
    read: Callable[[Any], T]
    long: bool = False
    retried: bool = True
    by_request_id: bool = False


def list_models() -> Call[ModelListing]:
    request = model_pb2.ListModelsRequest()
    return Call("list models", lambda s: s.models.ListModels, request, convert.model_listing_from_proto)


def get_model(model: str, version: str) -> Call[ServedModel]:
    request = model_pb2.GetModelRequest(model=model, version=version)
    return Call(f"get model {model!r}", lambda s: s.models.GetModel, request, convert.served_model_from_proto)


def estimate(model: str, version: str) -> Call[CostEstimate]:
    request = model_pb2.EstimateCostRequest(model=model, version=version)
    return Call(f"estimate model {model!r}", lambda s: s.models.EstimateCost, request, convert.cost_estimate_from_proto)


def create_upload(offer: UploadOffer) -> Call[UploadInfo | KeySetInfo | MissingPieces]:
    request = convert.upload_offer_to_proto(offer)
    read = convert.offer_reply_from_proto
    return Call("offer the keys", lambda s: s.keys.CreateUpload, request, read, retried=False)


def get_upload(upload_id: str) -> Call[UploadInfo]:
    request = keys_pb2.GetUploadRequest(upload_id=upload_id)
    return Call(
        "resume the upload", lambda s: s.keys.GetUpload, request, lambda reply: convert.upload_from_proto(reply.upload)
    )


def upload_chunks(requests: Callable[[], Any]) -> Call[int]:
    return Call(
        "upload the keys",
        lambda s: s.keys.UploadChunks,
        requests,
        lambda reply: int(reply.committed_offset),
        long=True,
        retried=False,
    )


def commit_upload(upload_id: str) -> Call[KeySetInfo]:
    request = keys_pb2.CommitUploadRequest(upload_id=upload_id)
    return Call("commit the keys", lambda s: s.keys.CommitUpload, request, _key_set, long=True, retried=False)


def get_key_set(key_set_id: str) -> Call[KeySetInfo]:
    request = keys_pb2.GetKeySetRequest(key_set_id=key_set_id)
    return Call("describe the keys", lambda s: s.keys.GetKeySet, request, _key_set)


def list_key_sets(page_token: str) -> Call[KeySetListing]:
    request = keys_pb2.ListKeySetsRequest(page_token=page_token)
    return Call("list the keys", lambda s: s.keys.ListKeySets, request, convert.key_set_listing_from_proto)


def delete_key_set(key_set_id: str = "", handle: str = "") -> Call[None]:
    request = keys_pb2.DeleteKeySetRequest(key_set_id=key_set_id, handle=handle)
    return Call("delete the keys", lambda s: s.keys.DeleteKeySet, request, lambda reply: None)


def infer(call: InferenceCall) -> Call[InferenceReply]:
    request = convert.inference_call_to_proto(call)
    return Call(
        f"run model {call.model!r}",
        lambda s: s.inference.Infer,
        request,
        convert.inference_reply_from_proto,
        long=True,
        by_request_id=True,
    )


def submit_job(call: InferenceCall) -> Call[SubmittedJob]:
    request = inference_pb2.SubmitJobRequest(call=convert.inference_call_to_proto(call))
    what, read = f"submit a job of model {call.model!r}", convert.submitted_job_from_proto
    return Call(what, lambda s: s.inference.SubmitJob, request, read, long=True, by_request_id=True)


def watch_job(job_id: str) -> Call[JobStatus]:
    """A stream: `read` is for each of its messages."""
    request = inference_pb2.WatchJobRequest(job_id=job_id)
    return Call("watch the job", lambda s: s.inference.WatchJob, request, _job_status, long=True)


def cancel_job(job_id: str) -> Call[JobStatus]:
    request = inference_pb2.CancelJobRequest(job_id=job_id)
    return Call("cancel the job", lambda s: s.inference.CancelJob, request, _job_status)


def get_result(job_id: str) -> Call[InferenceReply]:
    request = inference_pb2.GetResultRequest(job_id=job_id)
    read: Callable[[Any], InferenceReply] = lambda reply: convert.inference_reply_from_proto(reply.reply)  # noqa: E731
    return Call("get the job's result", lambda s: s.inference.GetResult, request, read, long=True)


def _key_set(reply: Any) -> KeySetInfo:
    return convert.key_set_from_proto(reply.key_set)


def _job_status(reply: Any) -> JobStatus:
    return convert.job_status_from_proto(reply.status)
