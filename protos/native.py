"""What crosses the network, as plain frozen dataclasses: what servicers and clients hold instead of protobuf messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = [
    "CostEstimate",
    "InferenceCall",
    "InferenceReply",
    "JobState",
    "JobStatus",
    "KeySetInfo",
    "KeySetListing",
    "LayerEstimate",
    "MissingPieces",
    "ModelListing",
    "ModelSummary",
    "ServedModel",
    "ServerInfo",
    "SubmittedJob",
    "Timings",
    "UploadInfo",
    "UploadOffer",
]


@dataclass(frozen=True)
class ServerInfo:
    """Build, codec version and limits of a server, sizes in bytes."""

    build: str
    wire_version: int
    max_message_bytes: int
    max_upload_bytes: int
    max_chunk_bytes: int
    max_upload_pieces: int = 0


@dataclass(frozen=True)
class ModelSummary:
    """A served model's name and its versions, ascending; the default is the latest unless the operator chose another."""

    name: str
    versions: tuple[str, ...]
    default_version: str


@dataclass(frozen=True)
class ModelListing:
    """The reply of ListModels."""

    models: tuple[ModelSummary, ...]
    server: ServerInfo


@dataclass(frozen=True)
class ServedModel:
    """The reply of GetModel: one version of a model. `client_spec` is unparsed JSON (he_runtime.ClientSpec.parse)."""

    summary: ModelSummary
    version: str
    client_spec: bytes = field(repr=False)
    client_spec_digest: str
    model_digest: str
    plan_digest: str
    server: ServerInfo


@dataclass(frozen=True)
class LayerEstimate:
    """Predicted time of one layer, and between what it is expected."""

    name: str
    predicted_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class CostEstimate:
    """The reply of EstimateCost: predicted evaluation time, bytes, and operation counts of the plan and uncompressed.

    The true time is expected between `low_ms` and `high_ms`; `confidence` says in words what the table is good for.
    `peak_bytes` is the memory of a worker with one client's keys, `error_bound` six standard deviations of an output.
    """

    model: str
    version: str
    predicted_ms: float
    up_bytes: int
    down_bytes: int
    key_bytes: int
    counts: Mapping[str, int]
    dense_counts: Mapping[str, int]
    table_name: str
    low_ms: float = 0.0
    high_ms: float = 0.0
    confidence: str = ""
    layers: tuple[LayerEstimate, ...] = ()
    peak_bytes: int = 0
    keys: int = 0
    levels_left: int = 0
    error_bound: float = 0.0


@dataclass(frozen=True)
class UploadOffer:
    """The request of CreateUpload: what is about to be uploaded; digests are hexadecimal sha256.

    With a `manifest` (see `protos.manifest`) `sha256` is of that; `assumed` has a byte for each piece, 1 where its bytes
    cannot be sent.
    """

    params_digest: str
    client_spec_digest: str
    total_bytes: int
    sha256: str
    manifest: bytes = field(default=b"", repr=False)
    assumed: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class MissingPieces:
    """Assumed pieces, by number, that the server has no bytes of."""

    numbers: tuple[int, ...]


@dataclass(frozen=True)
class UploadInfo:
    """An upload under way; continue at `committed_offset`. The id is a capability and stays out of repr.

    `missing`: of an offer with a manifest, the numbers of the pieces that the `total_bytes` to send consist of.
    """

    upload_id: str = field(repr=False)
    total_bytes: int
    committed_offset: int
    missing: tuple[int, ...] = ()


@dataclass(frozen=True)
class KeySetInfo:
    """A committed key set. The id is a capability and stays out of repr.

    `handle` is its sha256, which names the set where its own tenant lists, touches or deletes it, and opens it for nobody.
    `resident`: the bytes lie on the server's own disk. Times are of the server's clock.
    """

    key_set_id: str = field(repr=False)
    sha256: str
    total_bytes: int
    params_digest: str
    client_spec_digest: str
    handle: str = ""
    created_unix_ms: int = 0
    last_used_unix_ms: int = 0
    expires_unix_ms: int = 0
    resident: bool = False


@dataclass(frozen=True)
class KeySetListing:
    """A page of ListKeySets, whose entries have handles and no ids; an empty token ends the listing."""

    key_sets: tuple[KeySetInfo, ...]
    next_page_token: str = ""


@dataclass(frozen=True)
class InferenceCall:
    """The request of Infer. `ciphertexts` is one he_runtime.wire object; empty strings mean default or unchecked."""

    model: str
    version: str
    client_spec_digest: str
    key_set_id: str = field(repr=False)
    ciphertexts: bytes = field(repr=False)
    request_id: str = ""


@dataclass(frozen=True)
class Timings:
    """Milliseconds spent waiting for a worker, loading keys or model, and evaluating."""

    queue_ms: float
    load_ms: float
    evaluate_ms: float


@dataclass(frozen=True)
class InferenceReply:
    """The reply of Infer; `counts` are the operations executed."""

    ciphertexts: bytes = field(repr=False)
    model: str
    version: str
    plan_digest: str
    timings: Timings
    counts: Mapping[str, int]
    server_build: str
    wire_version: int


class JobState(StrEnum):
    """The states of a job; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class JobStatus:
    """How far a job is: layer `layer` (from 1, 0 while none is under way) of `layers`, operations done of those planned
    (0: not known yet), and predicted seconds until its result is there (none: not known). A failed job has the reason
    and message of its error."""

    state: JobState
    layer: int = 0
    layers: int = 0
    layer_name: str = ""
    operations_done: int = 0
    operations_planned: int = 0
    seconds_left: float | None = None
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class SubmittedJob:
    """The reply of SubmitJob. The id is a capability and stays out of repr."""

    job_id: str = field(repr=False)
    status: JobStatus
