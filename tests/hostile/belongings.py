"""Keys, jobs and uploads that are not the caller's or not this model's, and uploads that do not fit what was announced."""

from __future__ import annotations

import random
from typing import Any

from protos.gen.secateur.v1 import inference_pb2, keys_pb2
from tests.hostile.case import ACCEPTED, HUGE, Case, Group, nth, refusal
from tests.hostile.world import ACME, RIVAL, World
from tests.server.harness import sha256

__all__ = ["BELONGINGS"]


def _ids(rng: random.Random, n: int, world: World) -> Case:
    """Keys that are not the caller's, or not this model's; uploads and jobs that are not his."""
    other, rival, second = (world.sides[name] for name in ("other", "tiny of rival", "second"))
    infer, status = "InferenceService/Infer", keys_pb2.GetKeySetRequest
    narrow = world.sides["narrow"].key_set_id

    def asked(model: str, key_set_id: str) -> bytes:
        return world.infer_request(world.sides[model].request, model, key_set_id=key_set_id).SerializeToString()

    handle = sha256(rival.key_set_id.encode())
    unknown = rng.randbytes(16).hex()
    made: list[tuple[str, str, str, bytes]] = [
        ("another tenant's keys", infer, "KEY_SET_UNKNOWN", asked("tiny", rival.key_set_id)),
        ("unknown keys", infer, "KEY_SET_UNKNOWN", asked("tiny", unknown)),
        ("a long id of keys", infer, "KEY_SET_UNKNOWN", asked("tiny", "\u20ac" * 20_000)),
        ("a foreign model's keys", infer, "KEY_PARAMETERS_DIFFER", asked("tiny", other.key_set_id)),
        ("keys without a rotation", infer, "KEY_MISSING", asked("other", narrow)),
        ("another secret's keys", infer, "", asked("tiny", second.key_set_id)),
        (
            "a status",
            "KeyService/GetKeySet",
            "KEY_SET_UNKNOWN",
            status(key_set_id=rival.key_set_id).SerializeToString(),
        ),
        ("a handle", "KeyService/GetKeySet", "KEY_SET_UNKNOWN", status(handle=handle).SerializeToString()),
        ("a touch", "KeyService/TouchKeySet", "KEY_SET_UNKNOWN", status(handle=handle).SerializeToString()),
        ("a deletion", "KeyService/DeleteKeySet", "KEY_SET_UNKNOWN", status(handle=handle).SerializeToString()),
        ("an id", "KeyService/DeleteKeySet", "KEY_SET_UNKNOWN", status(key_set_id=unknown).SerializeToString()),
        ("a job", "InferenceService/GetResult", "JOB_UNKNOWN", _job_id(unknown)),
        ("a job", "InferenceService/CancelJob", "JOB_UNKNOWN", _job_id(unknown)),
        ("a job", "InferenceService/WatchJob", "JOB_UNKNOWN", _job_id("\0" * 10_000)),
    ]
    name, method, reason, data = nth(made, n)
    expected = refusal(reason) if reason else ACCEPTED
    return Case.of(f"{name} to {method}", expected, lambda world: world.call(method, data))


def _job_id(text: str) -> bytes:
    return inference_pb2.GetResultRequest(job_id=text).SerializeToString()


def _uploads(rng: random.Random, n: int, world: World) -> Case:
    """Offers, chunks and commits that do not fit; nothing of them is kept."""
    side = world.sides["other"]
    good = {
        "params_digest": side.spec.params.digest,
        "client_spec_digest": side.spec.digest,
        "total_bytes": 1000,
        "sha256": "0" * 64,
    }
    number = nth(HUGE, n // 13)

    def offer(reason: str, **changes: Any) -> tuple[str, str, bytes, str]:
        data = keys_pb2.CreateUploadRequest(**{**good, **changes}).SerializeToString()
        return "KeyService/CreateUpload", reason, data, ACME

    def chunk(reason: str, tenant: str = ACME, method: str = "KeyService/UploadChunk", **fields: Any) -> Any:
        known = {"upload_id": world.upload_id, "offset": 500, "data": b"x"}
        return method, reason, keys_pb2.UploadChunkRequest(**{**known, **fields}).SerializeToString(), tenant

    own = keys_pb2.GetUploadRequest(upload_id=world.upload_id).SerializeToString()
    made: list[tuple[str, str, bytes, str]] = [
        offer("BYTES_MALFORMED", sha256=nth(("", "0" * 63, "A" * 64, "0" * 65, "0" * 63 + "\n", "x" * 64), n // 13)),
        offer("KEY_PARAMETERS_DIFFER", params_digest="0" * 64),
        offer("MODEL_UNKNOWN", client_spec_digest="0" * 64),
        offer("BYTES_MALFORMED", total_bytes=0),
        offer("LIMIT_EXCEEDED", total_bytes=number),
        chunk("UPLOAD_OFFSET_WRONG", offset=nth((0, 499, 501, *HUGE), n // 13)),
        chunk("UPLOAD_OFFSET_WRONG", method="KeyService/UploadChunks", offset=number),
        chunk("SIZE_MISMATCH", data=bytes(501)),
        chunk("LIMIT_EXCEEDED", data=bytes((1 << 20) + 1)),
        chunk("UPLOAD_UNKNOWN", upload_id=rng.randbytes(16).hex()),
        chunk("UPLOAD_UNKNOWN", tenant=RIVAL),
        ("KeyService/CommitUpload", "UPLOAD_INCOMPLETE", own, ACME),
        ("KeyService/CommitUpload", "UPLOAD_UNKNOWN", own, RIVAL),
    ]
    method, reason, data, tenant = nth(made, n)
    name = f"upload {n % len(made)} to {method}"
    return Case.of(name, refusal(reason), lambda world: world.call(method, data, tenant=tenant))


BELONGINGS: dict[str, Group] = {"ids of others": _ids, "uploads that do not fit": _uploads}
