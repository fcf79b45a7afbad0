"""Admission in front of real worker processes: tenants, jobs, prices learned, and what the wire says of a refusal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fake_runtime
import grpc
import pytest
from harness import KEYS, failure, make_config

from he_runtime.errors import Cancelled, Reason
from server.engine.admission import Load
from server.engine.engine import Engine, Evaluation
from server.engine.settings import AdmissionConfig, TenantQuota
from server.errors import ServiceError
from server.identity.tenant import Caller, acting_as

Submit = Callable[..., Coroutine[Any, Any, Evaluation]]


@asynccontextmanager
async def running(tmp_path: Path, workers: int = 1, **admission: Any) -> AsyncIterator[tuple[Engine, Submit]]:
    """An engine, and a function that submits a payload for a tenant."""
    config = make_config(tmp_path, engine={"workers": workers})
    (tmp_path / "keys").write_bytes(KEYS)
    model = fake_runtime.describe(config.models / "digits" / "10", "digits", "10")
    runtime: Any = fake_runtime
    engine = Engine(config.engine, config.limits, "error", admission=AdmissionConfig(**admission), runtime=runtime)
    where: dict[str, Any] = {"key_path": str(tmp_path / "keys"), "key_sha256": "k"}

    async def submit(tenant: str, payload: bytes, seconds: float | None = None, kind: Any = "infer") -> Evaluation:
        with acting_as(Caller(tenant)):
            return await engine.submit(kind, model, payload, **where, timeout_seconds=seconds)

    await engine.start([model])
    try:
        yield engine, submit
    finally:
        await engine.stop()


def test_a_flood_delays_another_tenant_by_no_more_than_a_request(tmp_path: Path) -> None:
    async def check() -> None:
        async with running(tmp_path) as (engine, submit):
            await submit("flood", b"sleep:0.05")
            flood = [asyncio.create_task(submit("flood", b"sleep:0.05")) for _ in range(20)]
            await asyncio.sleep(0)
            await submit("guest", b"echo:x")
            assert sum(task.done() for task in flood) <= 2, "what ran when it came, and one of the same age"
            await asyncio.gather(*flood)
            assert engine.load == Load(0, 0.0, 0, 0, 0)

    asyncio.run(check())


def test_one_whose_caller_leaves_is_forgotten_and_the_others_are_not(tmp_path: Path) -> None:
    async def check() -> None:
        async with running(tmp_path) as (engine, submit):
            running_now = asyncio.create_task(submit("a", b"sleep:0.3"))
            waiting = [asyncio.create_task(submit("a", b"echo:%d" % i)) for i in range(6)]
            await asyncio.sleep(0.1)
            assert (engine.load.waiting, engine.load.running) == (6, 1)
            for task in (running_now, *waiting[::2]):
                task.cancel()
            done = await asyncio.gather(running_now, *waiting, return_exceptions=True)
            assert [isinstance(d, Evaluation) for d in done] == [False] + [False, True] * 3
            await submit("a", b"echo:after")
            assert engine.load == Load(0, 0.0, 0, 0, 0)

    asyncio.run(check())


def test_a_lost_worker_gives_back_what_it_did_not_begin(tmp_path: Path) -> None:
    async def check() -> None:
        async with running(tmp_path) as (engine, submit):
            dying = asyncio.create_task(submit("a", b"die:"))
            waiting = [asyncio.create_task(submit(tenant, b"echo:x")) for tenant in "abab"]
            with pytest.raises(ServiceError) as lost:
                await dying
            assert lost.value.reason is Reason.WORKER_LOST
            assert len(await asyncio.gather(*waiting)) == 4
            assert engine.load == Load(0, 0.0, 0, 0, 0)

    asyncio.run(check())


def test_jobs_leave_a_worker_to_calls(tmp_path: Path) -> None:
    async def check() -> None:
        async with running(tmp_path, 2) as (engine, submit):
            model = fake_runtime.describe(tmp_path / "models" / "digits" / "10", "digits", "10")
            key, gated = (str(tmp_path / "keys"), "k"), b"steps:%s" % bytes(tmp_path)
            tickets = [await engine.begin("infer", model, gated, *key, seconds=30, lane="job") for _ in range(3)]
            results = [asyncio.create_task(engine.result(ticket)) for ticket in tickets]
            for _ in range(3):
                await submit("a", b"echo:x")
            assert [ticket.slot is not None for ticket in tickets] == [True, False, False]
            for gate in range(3):
                (tmp_path / str(gate)).touch()
            await asyncio.gather(*results)

    asyncio.run(check())


def test_a_price_follows_measurements_and_then_a_hopeless_deadline_is_refused(tmp_path: Path) -> None:
    async def check() -> None:
        async with running(tmp_path) as (_, submit):
            first = await submit("a", b"sleep:0.2", 5.0)
            assert first.predicted_ms == 12.5, "the runtime's estimate"
            assert (await submit("a", b"sleep:0.2")).predicted_ms >= 200
            started = time.monotonic()
            with pytest.raises(Cancelled) as hopeless:
                await submit("a", b"sleep:0.2", 0.15)
            assert time.monotonic() - started < 0.1 and hopeless.value.reason is Reason.DEADLINE_EXCEEDED
            waiting = [asyncio.create_task(submit("a", b"sleep:0.2")) for _ in range(4)]
            await asyncio.sleep(0)
            with pytest.raises(ServiceError) as busy:
                await submit("a", b"sleep:0.2", 0.5)
            assert busy.value.reason is Reason.SERVER_BUSY and busy.value.retry_after_seconds
            assert (await submit("a", b"echo:x", 5.0)).outcome.reason == ""
            await asyncio.gather(*waiting)

    asyncio.run(check())


def test_a_quota_is_named_on_the_wire(serve: Any, tmp_path: Path) -> None:
    _, caller = serve(admission={"tenants": {"anonymous": TenantQuota(ms_per_minute=20.0)}})
    keys = caller.upload(KEYS).key_set_id
    reasons = []
    for _ in range(8):
        try:
            caller.infer(keys, b"sleep:0.02")
        except grpc.RpcError:
            over = failure(lambda: caller.infer(keys, b"sleep:0.02"))
            reasons.append((over.reason, over.subject, over.code, over.retry_after_seconds is not None))
    assert reasons and set(reasons) == {
        ("LIMIT_EXCEEDED", "quota.ms_per_minute", grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    }
