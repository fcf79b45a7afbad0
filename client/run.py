"""The parts of a call of a prepared model, without any waiting: what to send, what a reply is worth, how answers are joined."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from he_runtime.client_spec import ClientSpec
from he_runtime.errors import InputError, Reason
from he_runtime.ring import CiphertextData
from protos.native import InferenceCall, InferenceReply

from .errors import BatchIncomplete, ServerError, ServerUntrusted
from .exchange import decode_reply, decrypt, encrypt
from .limits import Limits
from .prediction import Floats, Prediction, Timings, post_process
from .prepare import Prepared
from .trust import require_printable

__all__ = ["Answer", "Batch", "Request", "checked_reply", "make_request", "one_ciphertext", "open_reply", "predicted"]

_REQUEST_OVERHEAD_BYTES = 4096  # the other fields of a request


@dataclass(frozen=True, eq=False)
class Request:
    """An encrypted request. Its request_id stays the same however often it is sent, so that it is evaluated once."""

    call: InferenceCall
    count: int
    encrypt_seconds: float


@dataclass(frozen=True, eq=False)
class Answer:
    """The decrypted outputs (count, *output shape) of one request, and what it took."""

    outputs: Floats
    timings: Timings
    up_bytes: int
    down_bytes: int
    counts: dict[str, int]


def one_ciphertext(spec: ClientSpec, samples: Floats) -> Floats:
    """The samples, where one request can carry them; InputError."""
    if len(samples) > spec.input.batch:
        raise InputError(
            f"cannot submit the batch as one job: got {len(samples)} samples, need at most {spec.input.batch} of model "
            f"{spec.model!r}; try one job for each, or predict"
        )
    return samples


def make_request(ready: Prepared, samples: Floats, max_request_bytes: int) -> Request:
    """Encrypt samples that share a request; ServerError (LIMIT_EXCEEDED) where it is larger than one message."""
    start = time.perf_counter()
    ciphertexts = encrypt(ready.spec, ready.secret, samples)
    if len(ciphertexts) + _REQUEST_OVERHEAD_BYTES > max_request_bytes:
        raise ServerError(
            f"cannot send the input: it takes {len(ciphertexts)} bytes, need less than {max_request_bytes} for one "
            "message; try larger message limits on both sides",
            Reason.LIMIT_EXCEEDED,
        )
    call = InferenceCall(
        model=ready.spec.model,
        version=ready.spec.version,
        client_spec_digest=ready.spec_digest,
        key_set_id=ready.key_set_id,
        ciphertexts=ciphertexts,
        request_id=uuid.uuid4().hex,
    )
    return Request(call, len(samples), time.perf_counter() - start)


def checked_reply(spec: ClientSpec, reply: InferenceReply, limits: Limits) -> list[CiphertextData]:
    """The reply's ciphertexts; ServerUntrusted, WireError or CiphertextMismatch where it is not what was asked for."""
    if (reply.model, reply.version, reply.plan_digest) != (spec.model, spec.version, spec.plan_digest):
        raise ServerUntrusted("cannot use the reply: got one of another model, version or plan than the one asked")
    require_printable(reply.counts, limits)
    return decode_reply(spec, reply.ciphertexts)


def open_reply(ready: Prepared, request: Request, reply: InferenceReply, round_trip: float, limits: Limits) -> Answer:
    """Check and decrypt the reply to a request."""
    start = time.perf_counter()
    outputs = decrypt(ready.spec, ready.secret, checked_reply(ready.spec, reply, limits), request.count)
    timings = Timings(
        encrypt_seconds=request.encrypt_seconds,
        round_trip_seconds=round_trip,
        server_queue_seconds=reply.timings.queue_ms / 1000,
        server_load_seconds=reply.timings.load_ms / 1000,
        server_evaluate_seconds=reply.timings.evaluate_ms / 1000,
        decrypt_seconds=time.perf_counter() - start,
    )
    return Answer(outputs, timings, len(request.call.ciphertexts), len(reply.ciphertexts), dict(reply.counts))


def predicted(
    spec: ClientSpec, answers: Sequence[Answer], single: bool, key_bytes: int, uploaded_bytes: int
) -> Prediction:
    """The answers to consecutive requests as one prediction."""
    counts = Counter[str]()
    for answer in answers:
        counts.update(answer.counts)
    outputs = np.concatenate([answer.outputs for answer in answers])
    logits, index, label, probabilities = post_process(spec, outputs, single)
    return Prediction(
        logits=logits,
        index=index,
        label=label,
        probabilities=probabilities,
        timings=sum((answer.timings for answer in answers), Timings()),
        up_bytes=sum(answer.up_bytes for answer in answers),
        down_bytes=sum(answer.down_bytes for answer in answers),
        key_bytes=key_bytes,
        uploaded_bytes=uploaded_bytes,
        error_bound=spec.error_bound,
        counts=dict(counts),
    )


class Batch:
    """Normalized samples (B, *input shape), split into requests, and the answers so far, by number of the request."""

    def __init__(self, spec: ClientSpec, samples: Floats, single: bool) -> None:
        self.spec = spec
        self.answers: dict[int, Answer] = {}
        self.uploaded_bytes = 0
        self._samples = samples
        self._single = single
        self._share = spec.input.batch  # of one request, usually one sample

    @property
    def size(self) -> int:
        return len(self._samples)

    @property
    def items_done(self) -> int:
        return sum(len(answer.outputs) for answer in self.answers.values())

    def missing(self) -> list[int]:
        """The requests without an answer."""
        return [k for k in range(-(-self.size // self._share)) if k not in self.answers]

    def samples(self, k: int) -> Floats:
        return self._samples[k * self._share : (k + 1) * self._share]

    def prediction(self, ready: Prepared) -> Prediction:
        """Of all requests, in order."""
        return self._predicted(self._single, ready.key_bytes)

    def failed(self, error: ServerError, key_bytes: int) -> ServerError:
        """The error itself where nothing is done, or else one that says what is, with the answers."""
        if not self.answers:
            return error
        done, missing = self._items(sorted(self.answers)), self._items(self.missing())
        return BatchIncomplete(error, done, missing, self._predicted(False, key_bytes))

    def _predicted(self, single: bool, key_bytes: int) -> Prediction:
        answers = [self.answers[k] for k in sorted(self.answers)]
        return predicted(self.spec, answers, single, key_bytes, self.uploaded_bytes)

    def _items(self, requests: Sequence[int]) -> tuple[int, ...]:
        return tuple(i for k in requests for i in range(k * self._share, min((k + 1) * self._share, self.size)))
