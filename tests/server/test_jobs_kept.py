"""What is kept of jobs, for whom and for how long: records, budgets, tenants and predicted times, without a server."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from he_runtime.errors import Reason, SecateurError
from protos.native import JobState, SubmittedJob
from server.engine.frames import Outcome
from server.engine.progress import Progress, ProgressBoard, ProgressWriter
from server.engine.ticket import Evaluation
from server.errors import ServiceError
from server.identity.tenant import Caller, acting_as
from server.inference.job import to_forget
from server.inference.job_spool import JobRecord, JobSpool
from server.inference.jobs import Jobs
from server.inference.settings import JobsConfig
from server.inference.time_left import seconds_left
from server.inference.window import RequestKey


class FakeTicket:
    def __init__(self) -> None:
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.slot = None
        self.model = None
        self.price_ms = 1000.0
        self.started = 0.0


class FakeEngine:
    """An engine whose jobs end when the test says so."""

    def __init__(self) -> None:
        self.pricing = self
        self.tickets: list[FakeTicket] = []

    async def cost(self, model: object) -> None:
        return None

    def of(self, kind: str, model: object) -> Any:
        return (type("Price", (), {"ratio": None}), 0.0)

    async def begin(self, seconds: float) -> Any:
        self.tickets.append(FakeTicket())
        return self.tickets[-1]

    async def result(self, ticket: FakeTicket) -> Evaluation:
        return Evaluation(await ticket.done, 0.0, Outcome(1))


class Desk:
    """A tenant's way to the jobs of one server."""

    def __init__(self, directory: Path, **config: Any) -> None:
        self.engine = FakeEngine()
        self.jobs = Jobs(JobsConfig(**{"watch_seconds": 0.01, **config}), JobSpool(directory), self.engine)  # type: ignore[arg-type]

    async def submit(self, tenant: str = "a", request_id: str = "", content: str = "c") -> SubmittedJob:
        key = RequestKey(tenant, request_id, "k", "p", content) if request_id else None
        with acting_as(Caller(tenant)):
            return await self.jobs.submit(key, self.engine.begin, lambda done: done.reply)

    async def finish(self, result: bytes = b"result", number: int = -1) -> None:
        self.engine.tickets[number].done.set_result(result)
        await self.jobs.idle()

    async def result(self, job: SubmittedJob, tenant: str = "a") -> bytes:
        with acting_as(Caller(tenant)):
            return await self.jobs.result(job.job_id)


def reason(error: pytest.ExceptionInfo[SecateurError]) -> Reason:
    return error.value.reason


def test_another_tenants_job_looks_like_none(tmp_path: Path) -> None:
    async def check() -> None:
        desk = Desk(tmp_path)
        job = await desk.submit("a", "same id")
        other = await desk.submit("b", "same id")
        assert len(desk.engine.tickets) == 2, "an equal request of another tenant is another job"
        for ask in (desk.jobs.result, desk.jobs.cancel, lambda job_id: anext(desk.jobs.watch(job_id))):
            with acting_as(Caller("b")), pytest.raises(ServiceError) as hidden:
                await ask(job.job_id)
            with acting_as(Caller("b")), pytest.raises(ServiceError) as unknown:
                await ask("0" * 32)
            assert hidden.value.message == unknown.value.message and reason(hidden) is Reason.JOB_UNKNOWN
        desk.engine.tickets[0].done.set_result(b"a's")
        await desk.finish(b"b's", 1)
        assert await desk.result(job) == b"a's" and await desk.result(other, "b") == b"b's"

    asyncio.run(check())


def test_equal_requests_at_once_are_one_job_and_its_latest_ids_are_good(tmp_path: Path) -> None:
    async def check() -> None:
        desk = Desk(tmp_path)
        jobs = await asyncio.gather(*(desk.submit(request_id="r") for _ in range(10)))
        assert len(desk.engine.tickets) == 1 and len({job.job_id for job in jobs}) == 10
        await desk.finish()
        assert [await desk.result(job) for job in jobs[2:]] == [b"result"] * 8
        with pytest.raises(ServiceError):
            await desk.result(jobs[0])

    asyncio.run(check())


def test_numbers_of_unfinished_jobs_and_watchers_are_bounded(tmp_path: Path) -> None:
    async def check() -> None:
        desk = Desk(tmp_path, max_per_tenant=2, max_jobs=3, max_tenant_watchers=1)
        first, _ = await desk.submit(), await desk.submit()
        with pytest.raises(ServiceError) as over:
            await desk.submit()
        assert (reason(over), over.value.subject) == (Reason.LIMIT_EXCEEDED, "quota.jobs")
        await desk.submit("b")
        with pytest.raises(ServiceError) as busy:
            await desk.submit("c")
        assert reason(busy) is Reason.SERVER_BUSY and busy.value.retry_after_seconds
        with acting_as(Caller("a")):
            watch = desk.jobs.watch(first.job_id)
            assert (await anext(watch)).state is JobState.QUEUED
            with pytest.raises(ServiceError) as many:
                await anext(desk.jobs.watch(first.job_id))
            assert reason(many) is Reason.SERVER_BUSY
            await watch.aclose()
            assert (await anext(desk.jobs.watch(first.job_id))).state is JobState.QUEUED
            await desk.jobs.cancel(first.job_id)
        await desk.submit("c")

    asyncio.run(check())


def test_a_full_disk_fails_the_job_and_not_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        desk = Desk(tmp_path)
        job = await desk.submit()
        save = JobSpool.save

        def full(self: JobSpool, record: JobRecord, result: bytes | None = None) -> None:
            if result is not None:
                raise OSError(28, "No space left on device")
            save(self, record, result)

        monkeypatch.setattr(JobSpool, "save", full)
        await desk.finish()
        with pytest.raises(ServiceError) as failed:
            await desk.result(job)
        assert reason(failed) is Reason.LIMIT_EXCEEDED

    asyncio.run(check())


def test_results_survive_and_unfinished_jobs_are_lost_with_their_server(tmp_path: Path) -> None:
    async def first() -> tuple[SubmittedJob, SubmittedJob]:
        desk = Desk(tmp_path / "first")
        done, lost = await desk.submit(), await desk.submit(request_id="r")
        desk.engine.tickets[0].done.set_result(b"kept")
        with acting_as(Caller("a")):
            assert [s.state async for s in desk.jobs.watch(done.job_id)][-1] is JobState.SUCCEEDED
        shutil.copytree(tmp_path / "first", killed)  # what kill -9 leaves
        return done, lost

    async def second(done: SubmittedJob, lost: SubmittedJob) -> None:
        desk = Desk(killed)
        await desk.jobs.open()
        assert await desk.result(done) == b"kept"
        with pytest.raises(ServiceError) as gone:
            await desk.result(lost)
        assert reason(gone) is Reason.WORKER_LOST and "request_id" in gone.value.message
        again = await desk.submit(request_id="r")
        await desk.finish(b"again")
        assert await desk.result(again) == b"again"

    killed = tmp_path / "killed"
    done, lost = asyncio.run(first())
    (killed / "results" / "orphan").write_bytes(b"x")
    (killed / "records" / "torn.part").write_bytes(b"{")
    (killed / "records" / "bad").write_text(json.dumps({"name": "bad"}))
    asyncio.run(second(done, lost))
    assert len(list((killed / "results").iterdir())) == 2 and len(list((killed / "records").iterdir())) == 3


def record(name: str, tenant: str = "a", ended: float = 100.0, size: int = 10) -> JobRecord:
    return JobRecord(name, tenant, (), (), 0.0, JobState.SUCCEEDED, ended, result_bytes=size)


def test_what_is_forgotten_first() -> None:
    def names(found: list[JobRecord]) -> list[str]:
        return [r.name for r in found]

    config = JobsConfig(budget_bytes=100, result_ttl_seconds=50.0, max_jobs=4)
    old = [record("old", ended=10.0), record("new")]
    assert names(to_forget(old, config, 100.0, 0)) == ["old"]
    hog = [record("small", "b", size=5), *(record(f"h{i}", "hog", size=40) for i in range(3))]
    assert names(to_forget(hog, config, 100.0, 0)) == ["h0"], "the oldest of the one that fills the budget"
    assert names(to_forget(hog, replace(config, budget_bytes=10**6), 100.0, 1)) == ["small"], "or the oldest of all"
    running = [replace(record(f"r{i}"), state=JobState.QUEUED, ended=0.0) for i in range(9)]
    assert to_forget(running, config, 1e9, 0) == [], "never one that is not over"


def test_time_left_follows_the_report_and_then_the_evaluations_own_pace() -> None:
    left: Callable[..., float] = lambda ratio, elapsed, progress: seconds_left(  # noqa: E731
        (600.0, 400.0), 2000.0, ratio, elapsed, progress
    )
    assert left(2.0, 0.5, None) == 1.5, "of the corrected price, before the worker has said anything"
    assert left(2.0, 0.0, Progress(0, 4, 0, 2)) == 2.0
    assert left(2.0, 1.2, Progress(2, 4, 1, 2)) == pytest.approx(0.8)
    assert left(2.0, 2.4, Progress(2, 4, 1, 2)) == pytest.approx(0.4 * (0.4 * 2 + 0.6 * 4)), "slower than ever before"
    assert left(None, 0.3, Progress(1, 4, 0, 2, 0.5)) == pytest.approx(0.7), "never measured: its own pace alone"
    assert seconds_left((), 1000.0, None, 0.25, Progress(1, 4, 0, 1)) == pytest.approx(0.75), "without a report"
    assert left(2.0, 99.0, Progress(4, 4, 1, 2, 1.0)) == 0.0


def test_progress_is_believed_within_bounds() -> None:
    memory = bytearray(ProgressBoard.SIZE)
    board = ProgressBoard(memory)
    assert board.read(0) is None and board.read(7) is None
    writer = ProgressWriter(board, 7, {"fc1": 2, "fc2": 1})
    for done, layer in enumerate(("fc1", "fc1", "fc2")):
        writer(layer)
        writer.operation(done, 3)
        share = 0.5 if done == 1 else 0.0
        assert board.read(7) == Progress(done, 3, ("fc1", "fc2").index(layer), 2, share)
    assert board.read(6) is None, "another job's"
    board.write(7, Progress(2**63, 5, 2**63, 3, 9.0))
    assert board.read(7) == Progress(5, 5, 2, 3, 1.0)
    board.write(7, Progress(1, 0, 0, 0))
    assert board.read(7) is None
    memory[0] |= 1  # as while the worker writes
    assert board.read(7) is None
