"""Run one call of a prepared model: for each request encrypt, infer, check the reply, decrypt."""

from __future__ import annotations

import time
import uuid
from collections import Counter

import numpy as np

from he_runtime.errors import Reason
from protos.native import InferenceCall, InferenceReply

from .errors import ServerError, ServerUntrusted
from .exchange import decode_reply, decrypt, encrypt
from .limits import Limits
from .prediction import Floats, Prediction, Timings, post_process
from .prepare import Prepared
from .release import Release, decrypt_for_release, require_precision
from .transport import Transport
from .trust import require_printable

__all__ = ["run", "run_for_release"]

_REQUEST_OVERHEAD_BYTES = 4096  # the other fields of a request


def run(
    transport: Transport, ready: Prepared, samples: Floats, single: bool, limits: Limits, max_request_bytes: int
) -> Prediction:
    """The prediction for normalized samples (B, *input shape); without the B if `single`.

    A request carries as many samples as the model's plan interleaves in a ciphertext, usually one.
    """
    outputs: list[Floats] = []
    timings, up_bytes, down_bytes, counts = Timings(), 0, 0, Counter[str]()
    for first in range(0, len(samples), ready.spec.input.batch):
        start = time.perf_counter()
        shared = samples[first : first + ready.spec.input.batch]
        request = encrypt(ready.spec, ready.secret, shared)
        encrypted = time.perf_counter()
        reply = _infer(transport, ready, request, max_request_bytes)
        replied = time.perf_counter()
        require_printable(reply.counts, limits)
        ciphertexts = decode_reply(ready.spec, reply.ciphertexts)
        outputs.append(decrypt(ready.spec, ready.secret, ciphertexts, len(shared)))
        timings += _timings(start, encrypted, replied, time.perf_counter(), reply)
        up_bytes += len(request)
        down_bytes += len(reply.ciphertexts)
        counts.update(reply.counts)
    logits, index, label, probabilities = post_process(ready.spec, np.concatenate(outputs), single)
    return Prediction(
        logits=logits,
        index=index,
        label=label,
        probabilities=probabilities,
        timings=timings,
        up_bytes=up_bytes,
        down_bytes=down_bytes,
        key_bytes=ready.key_bytes,
        uploaded_bytes=ready.uploaded_bytes,
        error_bound=ready.spec.error_bound,
        counts=dict(counts),
    )


def run_for_release(
    transport: Transport,
    ready: Prepared,
    samples: Floats,
    limits: Limits,
    max_request_bytes: int,
    bits: int,
    releases: int,
    statistical_bits: int,
) -> Release:
    """The outputs of normalized samples (B, *input shape) as they may be published; nothing is sent for what is refused."""
    require_precision(ready.spec, bits, releases, statistical_bits)
    replies = []
    for first in range(0, len(samples), ready.spec.input.batch):
        request = encrypt(ready.spec, ready.secret, samples[first : first + ready.spec.input.batch])
        reply = _infer(transport, ready, request, max_request_bytes)
        require_printable(reply.counts, limits)
        replies.append(decode_reply(ready.spec, reply.ciphertexts))
    return decrypt_for_release(ready, replies, len(samples), bits, releases=releases, statistical_bits=statistical_bits)


def _infer(transport: Transport, ready: Prepared, ciphertexts: bytes, max_request_bytes: int) -> InferenceReply:
    spec = ready.spec
    if len(ciphertexts) + _REQUEST_OVERHEAD_BYTES > max_request_bytes:
        raise ServerError(
            f"cannot send the input: it takes {len(ciphertexts)} bytes, need less than {max_request_bytes} for one "
            "message; try larger message limits on both sides",
            Reason.LIMIT_EXCEEDED,
        )
    call = InferenceCall(
        model=spec.model,
        version=spec.version,
        client_spec_digest=ready.spec_digest,
        key_set_id=ready.key_set_id,
        ciphertexts=ciphertexts,
        request_id=uuid.uuid4().hex,
    )
    reply = transport.infer(call)
    if (reply.model, reply.version, reply.plan_digest) != (spec.model, spec.version, spec.plan_digest):
        raise ServerUntrusted("cannot use the reply: got one of another model, version or plan than the one asked")
    return reply


def _timings(start: float, encrypted: float, replied: float, decrypted: float, reply: InferenceReply) -> Timings:
    return Timings(
        encrypt_seconds=encrypted - start,
        round_trip_seconds=replied - encrypted,
        server_queue_seconds=reply.timings.queue_ms / 1000,
        server_load_seconds=reply.timings.load_ms / 1000,
        server_evaluate_seconds=reply.timings.evaluate_ms / 1000,
        decrypt_seconds=decrypted - replied,
    )
