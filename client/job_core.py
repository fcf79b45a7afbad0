"""What a client does with jobs, written once for both clients: coroutines over a Core."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy.typing as npt

from he_runtime.client_spec import ClientSpec
from he_runtime.errors import Reason
from he_runtime.wire import key_set_byte_size
from protos.native import InferenceCall, InferenceReply, JobState, JobStatus

from . import calls
from .core import Core, Wish
from .errors import KeyStoreError, ServerError, ServerUntrusted
from .exchange import check_input, decrypt
from .job_store import JobRecord, find_job, forget_job, keep_job, list_jobs
from .keystore import KeyEntry
from .port import ask, watch
from .prediction import Prediction, Timings
from .retry import Budget
from .run import Answer, checked_reply, one_ciphertext, predicted
from .trust import parse_spec, require_printable

__all__ = ["RESUBMISSIONS", "KnownJob", "cancel", "known_job", "known_jobs", "result", "statuses", "submit"]


RESUBMISSIONS = 3  # of one job, where its server has forgotten it before its end


@dataclass(frozen=True)
class _Input:
    """What a job is submitted again with. It is not stored: a program that ends forgets it."""

    wish: Wish
    call: InferenceCall = field(repr=False)


@dataclass
class KnownJob:
    """A job, and the key entry whose secret its result is for; with `input` until its result is had."""

    entry: Path
    record: JobRecord
    input: _Input | None = None
    resubmissions: int = 0


async def submit(core: Core, wish: Wish, x: npt.ArrayLike, strict: bool) -> KnownJob:
    """Encrypt, submit, and store what the result is decrypted with before the job is handed out."""

    async def attempt(spec: ClientSpec, digest: str) -> KnownJob:
        samples, single = check_input(spec, x, strict)
        one_ciphertext(spec, samples)
        ready = await core.prepare(wish)
        request = await core.request(ready, samples)
        submitted = await ask(core.port, calls.submit_job(request.call), wish.budget)
        _check_id(submitted.job_id)
        text, size = ready.spec.to_json().decode(), len(request.call.ciphertexts)
        record = JobRecord(submitted.job_id, spec.model, spec.version, text, len(samples), single, size, time.time())
        await core.port.blocking(lambda _: keep_job(ready.entry.path, record), wish.budget)
        return KnownJob(ready.entry.path, record, _Input(wish, request.call))

    return await core.fresh(wish, attempt)


def known_job(core: Core, job: str) -> KnownJob:
    """By id or name, from the key store; KeyStoreError where it is not there."""
    return KnownJob(*find_job(core.keystore.server(core.identity), job))


def known_jobs(core: Core) -> list[KnownJob]:
    """All that were submitted from here to this server and not forgotten, the newest first."""
    return [KnownJob(*found) for found in list_jobs(core.keystore.server(core.identity))]


async def statuses(core: Core, job: KnownJob, budget: Budget) -> AsyncGenerator[JobStatus, None]:
    """At once, at every change, and at the end; again from the beginning where the job was lost and is submitted again."""
    lost = True
    while lost:
        lost = False
        try:
            async with aclosing(watch(core.port, job.record.job_id, budget)) as found:
                async for status in found:
                    lost = status.state is JobState.FAILED and status.reason == Reason.WORKER_LOST
                    if not (lost and await _submit_again(core, job, budget)):
                        lost = False
                        yield _presentable(core, status)
        except ServerError as error:
            lost = error.reason is Reason.JOB_UNKNOWN and await _submit_again(core, job, budget)
            if not lost:
                _forget_unknown(job, error)
                raise


async def _submit_again(core: Core, job: KnownJob, budget: Budget) -> bool:
    """Submit a job that its server lost, by a restart or with a worker, under the same request id; False where that may not be.

    A server that knows the request after all answers with the job that it has. Keys that it has lost too are uploaded
    again; an input that was packed for a version which it no longer has is not of use to it.
    """
    if job.input is None or job.resubmissions >= min(RESUBMISSIONS, budget.retries):
        return False
    job.resubmissions += 1
    packed, wish = job.input.call, replace(job.input.wish, budget=budget, progress=None)

    async def attempt(spec: ClientSpec, digest: str) -> bool:
        if digest != packed.client_spec_digest:
            return False
        ready = await core.prepare(wish)
        call = calls.submit_job(replace(packed, key_set_id=ready.key_set_id))
        submitted = await ask(core.port, call, budget)
        _check_id(submitted.job_id)
        job.record = replace(job.record, job_id=submitted.job_id, first_name=job.record.name)
        await core.port.blocking(lambda _: keep_job(job.entry, job.record), budget)
        return True

    return await core.fresh(wish, attempt)


async def cancel(core: Core, job: KnownJob, budget: Budget) -> JobStatus:
    job.input = None
    try:
        return _presentable(core, await ask(core.port, calls.cancel_job(job.record.job_id), budget))
    except ServerError as error:
        _forget_unknown(job, error)
        raise


async def result(core: Core, job: KnownJob, budget: Budget) -> Prediction:
    """Wait for the end, then fetch and decrypt; the error that a job failed with is raised here."""
    start = time.perf_counter()
    while True:
        async with aclosing(statuses(core, job, budget)) as found:
            async for _ in found:
                pass
        try:
            reply = await ask(core.port, calls.get_result(job.record.job_id), budget)
            break
        except ServerError as error:
            if error.reason is not Reason.JOB_UNKNOWN or not await _submit_again(core, job, budget):
                _forget_unknown(job, error)
                raise
    job.input = None
    took = time.perf_counter() - start
    return await core.port.compute(partial(_opened, core, job, reply, took))


def _opened(core: Core, job: KnownJob, reply: InferenceReply, round_trip: float) -> Prediction:
    record, start = job.record, time.perf_counter()
    spec = parse_spec(record.spec.encode(), core.limits)
    secret = KeyEntry(job.entry, spec.params).existing_secret() if job.entry.name == spec.params.digest else None
    if secret is None:
        raise KeyStoreError(
            f"cannot decrypt the result: {job.entry} holds no key for it; need the one it was submitted with"
        )
    outputs = decrypt(spec, secret, checked_reply(spec, reply, core.limits), record.count)
    timings = Timings(
        round_trip_seconds=round_trip,
        server_queue_seconds=reply.timings.queue_ms / 1000,
        server_load_seconds=reply.timings.load_ms / 1000,
        server_evaluate_seconds=reply.timings.evaluate_ms / 1000,
        decrypt_seconds=time.perf_counter() - start,
    )
    answer = Answer(outputs, timings, record.up_bytes, len(reply.ciphertexts), dict(reply.counts))
    key_bytes = key_set_byte_size(spec.keys, spec.params, seeded=True)
    return predicted(spec, [answer], record.single, key_bytes, uploaded_bytes=0)


def _check_id(job_id: str) -> None:
    if not (0 < len(job_id) <= 256 and job_id.isascii() and job_id.isprintable()):
        raise ServerUntrusted("cannot use the job: got an id that is not a short printable text")


def _presentable(core: Core, status: JobStatus) -> JobStatus:
    require_printable((status.layer_name, status.reason), core.limits)
    return replace(status, message="".join(c if c.isprintable() else " " for c in status.message[:400]))


def _forget_unknown(job: KnownJob, error: ServerError) -> None:
    if error.reason is Reason.JOB_UNKNOWN:
        forget_job(job.entry, job.record)
