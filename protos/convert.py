"""Native <-> proto pairs: for each native type, `x_to_proto` and `x_from_proto`, pure functions and nothing else.

A new wire field is one additive change in the .proto file, one field in `native`, and one line in each half of its pair.
"""

from __future__ import annotations

from .convert_jobs import (
    job_status_from_proto,
    job_status_to_proto,
    submitted_job_from_proto,
    submitted_job_to_proto,
)
from .gen.secateur.v1 import inference_pb2, keys_pb2, model_pb2
from .native import (
    CostEstimate,
    InferenceCall,
    InferenceReply,
    KeySetInfo,
    KeySetListing,
    LayerEstimate,
    MissingPieces,
    ModelListing,
    ModelSummary,
    ServedModel,
    ServerInfo,
    Timings,
    UploadInfo,
    UploadOffer,
)

__all__ = [
    "cost_estimate_from_proto",
    "cost_estimate_to_proto",
    "inference_call_from_proto",
    "inference_call_to_proto",
    "inference_reply_from_proto",
    "inference_reply_to_proto",
    "job_status_from_proto",
    "job_status_to_proto",
    "key_set_from_proto",
    "key_set_listing_from_proto",
    "key_set_listing_to_proto",
    "key_set_to_proto",
    "model_listing_from_proto",
    "model_listing_to_proto",
    "model_summary_from_proto",
    "model_summary_to_proto",
    "offer_reply_from_proto",
    "offer_reply_to_proto",
    "served_model_from_proto",
    "served_model_to_proto",
    "server_info_from_proto",
    "server_info_to_proto",
    "submitted_job_from_proto",
    "submitted_job_to_proto",
    "timings_from_proto",
    "timings_to_proto",
    "upload_from_proto",
    "upload_offer_from_proto",
    "upload_offer_to_proto",
    "upload_to_proto",
]


def server_info_to_proto(info: ServerInfo) -> model_pb2.ServerInfo:
    return model_pb2.ServerInfo(
        build=info.build,
        wire_version=info.wire_version,
        max_message_bytes=info.max_message_bytes,
        max_upload_bytes=info.max_upload_bytes,
        max_chunk_bytes=info.max_chunk_bytes,
        max_upload_pieces=info.max_upload_pieces,
    )


def server_info_from_proto(message: model_pb2.ServerInfo) -> ServerInfo:
    return ServerInfo(
        message.build,
        message.wire_version,
        message.max_message_bytes,
        message.max_upload_bytes,
        message.max_chunk_bytes,
        message.max_upload_pieces,
    )


def model_summary_to_proto(summary: ModelSummary) -> model_pb2.ModelSummary:
    return model_pb2.ModelSummary(name=summary.name, versions=summary.versions, default_version=summary.default_version)


def model_summary_from_proto(message: model_pb2.ModelSummary) -> ModelSummary:
    return ModelSummary(message.name, tuple(message.versions), message.default_version)


def model_listing_to_proto(listing: ModelListing) -> model_pb2.ListModelsResponse:
    models = [model_summary_to_proto(m) for m in listing.models]
    return model_pb2.ListModelsResponse(models=models, server=server_info_to_proto(listing.server))


def model_listing_from_proto(message: model_pb2.ListModelsResponse) -> ModelListing:
    return ModelListing(
        tuple(model_summary_from_proto(m) for m in message.models), server_info_from_proto(message.server)
    )


def served_model_to_proto(served: ServedModel) -> model_pb2.GetModelResponse:
    return model_pb2.GetModelResponse(
        summary=model_summary_to_proto(served.summary),
        version=served.version,
        client_spec=served.client_spec,
        client_spec_digest=served.client_spec_digest,
        model_digest=served.model_digest,
        plan_digest=served.plan_digest,
        server=server_info_to_proto(served.server),
    )


def served_model_from_proto(message: model_pb2.GetModelResponse) -> ServedModel:
    return ServedModel(
        summary=model_summary_from_proto(message.summary),
        version=message.version,
        client_spec=message.client_spec,
        client_spec_digest=message.client_spec_digest,
        model_digest=message.model_digest,
        plan_digest=message.plan_digest,
        server=server_info_from_proto(message.server),
    )


def cost_estimate_to_proto(estimate: CostEstimate) -> model_pb2.EstimateCostResponse:
    return model_pb2.EstimateCostResponse(
        model=estimate.model,
        version=estimate.version,
        predicted_ms=estimate.predicted_ms,
        up_bytes=estimate.up_bytes,
        down_bytes=estimate.down_bytes,
        key_bytes=estimate.key_bytes,
        counts=estimate.counts,
        dense_counts=estimate.dense_counts,
        table_name=estimate.table_name,
        low_ms=estimate.low_ms,
        high_ms=estimate.high_ms,
        confidence=estimate.confidence,
        layers=[model_pb2.LayerEstimate(**vars(layer)) for layer in estimate.layers],
        peak_bytes=estimate.peak_bytes,
        keys=estimate.keys,
        levels_left=estimate.levels_left,
        error_bound=estimate.error_bound,
    )


def cost_estimate_from_proto(message: model_pb2.EstimateCostResponse) -> CostEstimate:
    return CostEstimate(
        model=message.model,
        version=message.version,
        predicted_ms=message.predicted_ms,
        up_bytes=message.up_bytes,
        down_bytes=message.down_bytes,
        key_bytes=message.key_bytes,
        counts=dict(message.counts),
        dense_counts=dict(message.dense_counts),
        table_name=message.table_name,
        low_ms=message.low_ms,
        high_ms=message.high_ms,
        confidence=message.confidence,
        layers=tuple(LayerEstimate(x.name, x.predicted_ms, x.low_ms, x.high_ms) for x in message.layers),
        peak_bytes=message.peak_bytes,
        keys=message.keys,
        levels_left=message.levels_left,
        error_bound=message.error_bound,
    )


def upload_offer_to_proto(offer: UploadOffer) -> keys_pb2.CreateUploadRequest:
    return keys_pb2.CreateUploadRequest(
        params_digest=offer.params_digest,
        client_spec_digest=offer.client_spec_digest,
        total_bytes=offer.total_bytes,
        sha256=offer.sha256,
        manifest=offer.manifest,
        assumed=offer.assumed,
    )


def upload_offer_from_proto(message: keys_pb2.CreateUploadRequest) -> UploadOffer:
    return UploadOffer(**{name: getattr(message, name) for name in UploadOffer.__dataclass_fields__})


def upload_to_proto(upload: UploadInfo) -> keys_pb2.Upload:
    return keys_pb2.Upload(
        upload_id=upload.upload_id,
        total_bytes=upload.total_bytes,
        committed_offset=upload.committed_offset,
        missing=upload.missing,
    )


def upload_from_proto(message: keys_pb2.Upload) -> UploadInfo:
    return UploadInfo(message.upload_id, message.total_bytes, message.committed_offset, tuple(message.missing))


def key_set_to_proto(key_set: KeySetInfo) -> keys_pb2.KeySet:
    return keys_pb2.KeySet(**vars(key_set))  # the names are the same


def key_set_from_proto(message: keys_pb2.KeySet) -> KeySetInfo:
    return KeySetInfo(**{name: getattr(message, name) for name in KeySetInfo.__dataclass_fields__})


def key_set_listing_to_proto(listing: KeySetListing) -> keys_pb2.ListKeySetsResponse:
    key_sets = [key_set_to_proto(k) for k in listing.key_sets]
    return keys_pb2.ListKeySetsResponse(key_sets=key_sets, next_page_token=listing.next_page_token)


def key_set_listing_from_proto(message: keys_pb2.ListKeySetsResponse) -> KeySetListing:
    return KeySetListing(tuple(key_set_from_proto(k) for k in message.key_sets), message.next_page_token)


def offer_reply_to_proto(result: UploadInfo | KeySetInfo | MissingPieces) -> keys_pb2.CreateUploadResponse:
    """The reply of CreateUpload: an upload to go on with, the key set where its bytes are already stored, or what lacks."""
    if isinstance(result, KeySetInfo):
        return keys_pb2.CreateUploadResponse(key_set=key_set_to_proto(result))
    if isinstance(result, MissingPieces):
        return keys_pb2.CreateUploadResponse(lacking=keys_pb2.MissingPieces(numbers=result.numbers))
    return keys_pb2.CreateUploadResponse(upload=upload_to_proto(result))


def offer_reply_from_proto(message: keys_pb2.CreateUploadResponse) -> UploadInfo | KeySetInfo | MissingPieces:
    if message.WhichOneof("result") == "key_set":
        return key_set_from_proto(message.key_set)
    if message.WhichOneof("result") == "lacking":
        return MissingPieces(tuple(message.lacking.numbers))
    return upload_from_proto(message.upload)


def inference_call_to_proto(call: InferenceCall) -> inference_pb2.InferRequest:
    return inference_pb2.InferRequest(
        model=call.model,
        version=call.version,
        client_spec_digest=call.client_spec_digest,
        key_set_id=call.key_set_id,
        ciphertexts=call.ciphertexts,
        request_id=call.request_id,
    )


def inference_call_from_proto(message: inference_pb2.InferRequest) -> InferenceCall:
    return InferenceCall(
        message.model,
        message.version,
        message.client_spec_digest,
        message.key_set_id,
        message.ciphertexts,
        message.request_id,
    )


def timings_to_proto(timings: Timings) -> inference_pb2.Timings:
    return inference_pb2.Timings(queue_ms=timings.queue_ms, load_ms=timings.load_ms, evaluate_ms=timings.evaluate_ms)


def timings_from_proto(message: inference_pb2.Timings) -> Timings:
    return Timings(message.queue_ms, message.load_ms, message.evaluate_ms)


def inference_reply_to_proto(reply: InferenceReply) -> inference_pb2.InferResponse:
    return inference_pb2.InferResponse(
        ciphertexts=reply.ciphertexts,
        model=reply.model,
        version=reply.version,
        plan_digest=reply.plan_digest,
        timings=timings_to_proto(reply.timings),
        counts=reply.counts,
        server_build=reply.server_build,
        wire_version=reply.wire_version,
    )


def inference_reply_from_proto(message: inference_pb2.InferResponse) -> InferenceReply:
    return InferenceReply(
        ciphertexts=message.ciphertexts,
        model=message.model,
        version=message.version,
        plan_digest=message.plan_digest,
        timings=timings_from_proto(message.timings),
        counts=dict(message.counts),
        server_build=message.server_build,
        wire_version=message.wire_version,
    )
