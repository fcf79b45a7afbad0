"""Admission by cost, on a clock of its own: budgets, quotas, refusals and refunds."""

from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_runtime.errors import Cancelled, Reason
from protos.native import InferenceReply, Timings
from server.config import LimitsConfig, load_config
from server.engine.admission import Admission, Load
from server.engine.fair import Entry
from server.engine.prices import Prices
from server.engine.settings import AdmissionConfig, TenantQuota
from server.errors import ConfigError, ServiceError
from server.inference.window import RequestKey, RequestWindow

NOTHING = Load(0, 0.0, 0, 0, 0)
NOWHERE: frozenset[str] = frozenset()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(workers: int = 1, max_calls: int = 8, clock: Clock | None = None, **config: Any) -> Admission[str]:
    settings = AdmissionConfig(**{"affinity_ms": 0.0, **config})
    return Admission(settings, workers, max_calls, clock or Clock(), random.Random(1))


def admit(admission: Admission[str], tenant: str = "a", price_ms: float = 100.0, **more: Any) -> Entry[str]:
    entry, displaced = admission.admit("x", **{"tenant": tenant, "price_ms": price_ms, "payload_bytes": 10, **more})
    assert not displaced
    return entry


def take(admission: Admission[str]) -> Entry[str]:
    taken = admission.take([NOWHERE])
    assert taken is not None
    return taken[0]


def refusal(admission: Admission[str], **request: Any) -> ServiceError:
    with pytest.raises(ServiceError) as refused:
        admit(admission, **request)
    assert refused.value.retry_after_seconds is not None and 0.05 <= refused.value.retry_after_seconds <= 60.0
    return refused.value


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "admit", "admit", "take", "finish", "withdraw", "put_back", "wait"]),
        st.integers(0, 5),
        st.integers(1, 4000),
        st.integers(0, 600),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(OPERATIONS)
def test_budgets_hold_and_sums_come_back_to_nothing(operations: list[tuple[str, int, int, int]]) -> None:
    clock = Clock()
    admission = make(2, 5, clock, max_queue_ms=5000.0, max_queue_bytes=1000, ms_per_minute=20_000.0)
    waiting: list[Entry[str]] = []
    running: list[Entry[str]] = []
    for what, who, price, size in operations:
        if what == "admit":
            try:
                entry, displaced = admission.admit("x", tenant=f"t{who % 3}", price_ms=price, payload_bytes=size)
            except ServiceError as error:
                assert error.retry_after_seconds is not None
                continue
            waiting = [e for e in waiting if e not in displaced] + [entry]
        elif what == "take":
            taken = admission.take([NOWHERE] * (2 - len(running)))
            assert (taken is not None) == bool(waiting and len(running) < 2), "work conserving"
            if taken is not None:
                waiting.remove(taken[0])
                running.append(taken[0])
        elif what == "wait":
            clock.now += price / 1000
        elif what == "withdraw" and waiting:
            admission.withdraw(waiting.pop(who % len(waiting)))
        elif what in ("finish", "put_back") and running:
            entry = running.pop(who % len(running))
            if what == "finish":
                admission.finish(entry, price / 2)
            elif len(waiting) < 5:
                admission.put_back(entry)
                waiting.append(entry)
            else:
                running.append(entry)
        load = admission.load()
        assert (load.waiting, load.running) == (len(waiting), len(running))
        assert load.waiting_ms == sum(e.price_us for e in waiting) / 1e3
        assert load.waiting_bytes == sum(e.payload_bytes for e in waiting)
        assert load.waiting <= 5
        if what == "admit" and len(waiting) > 1:
            assert load.waiting_ms <= 5000.0 and (load.waiting_bytes <= 1000 or load.waiting_bytes == max(size, 0))
    for entry in waiting:
        admission.withdraw(entry)
        admission.withdraw(entry)
    for entry in running:
        admission.finish(entry, 1.0)
        admission.finish(entry, 1.0)
    assert admission.load() == NOTHING


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=6), st.integers(0, 5))
def test_a_request_that_is_withdrawn_leaves_no_trace(prices: list[int], at: int) -> None:
    """The order, the charges and the allowance of the others are as if it had never come."""

    def run(with_guest: bool) -> tuple[list[tuple[str, int]], float, float]:
        clock = Clock()
        admission = make(1, 99, clock, ms_per_minute=1e6)
        for tenant in "ab":  # ties go to the tenant that was seen first
            admission.withdraw(admit(admission, tenant))
        guest = None
        for i, price in enumerate(prices):
            if with_guest and i == at % len(prices):
                guest = admit(admission, "b", 777.0)
            admit(admission, "ab"[i % 2], float(price))
        if guest is not None:
            admission.withdraw(guest)
        order = []
        while (taken := admission.take([NOWHERE])) is not None:
            order.append((taken[0].tenant, taken[0].price_us))
        flow = admission._flow("b")
        return order, flow.finish, flow.allowance.level(clock())

    assert run(with_guest=True) == run(with_guest=False)


def test_a_full_queue_refuses_by_predicted_time_by_bytes_and_by_number() -> None:
    admission = make(max_queue_ms=250.0, max_queue_bytes=25)
    admit(admission, price_ms=400.0)
    by_time = refusal(admission)
    assert (by_time.reason, by_time.subject) == (Reason.SERVER_BUSY, "queue"), "the first is taken, however large"
    admission = make(max_queue_ms=1e6, max_queue_bytes=25)
    admit(admission), admit(admission)
    assert refusal(admission).reason is Reason.SERVER_BUSY
    admission = make(max_jobs_bytes=25, max_queue_bytes=25)
    admit(admission, lane="job"), admit(admission, lane="job"), admit(admission), admit(admission)
    assert refusal(admission, lane="job").reason is Reason.SERVER_BUSY, "calls and jobs do not fill each other's queue"
    admission = make(max_calls=0)
    assert refusal(admission).reason is Reason.SERVER_BUSY
    entry, _ = admission.admit("x", tenant="a", price_ms=1.0, payload_bytes=1, idle=True)
    assert take(admission) is entry, "a free worker needs no queue"


def test_callers_who_are_turned_away_come_back_one_after_the_other() -> None:
    clock = Clock()
    admission = make(2, 1, clock)
    admit(admission)
    times = [refusal(admission, price_ms=400.0).retry_after_seconds or 0.0 for _ in range(40)]
    assert times[0] < 0.1 and 0.2 * 39 <= times[-1] <= 0.2 * 39 * 1.25
    assert all(b > a * 0.75 for a, b in itertools.pairwise(times)) and len(set(times)) == 40
    late = [refusal(admission, price_ms=90_000.0).retry_after_seconds or 0.0 for _ in range(20)]
    assert len({round(x, 1) for x in late[2:]}) > 10 and all(30.0 <= x <= 60.0 for x in late[2:]), "bounded, and spread"
    clock.now += 3600.0
    assert (refusal(admission).retry_after_seconds or 99.0) < 0.1, "what was promised long ago is forgotten"


def test_one_tenants_refusals_do_not_put_off_another() -> None:
    admission = make(1, 1, tenants={"poor": TenantQuota(ms_per_minute=1.0)})
    admit(admission, price_ms=1.0)
    for _ in range(500):
        refusal(admission, price_ms=400.0)
    admit(admission, "poor", idle=True)
    assert (refusal(admission, tenant="poor").retry_after_seconds or 0) > 30
    assert (refusal(admission, tenant="b", price_ms=400.0).retry_after_seconds or 99.0) < 0.1


def test_a_flood_makes_room_for_one_who_has_less_in_the_queue() -> None:
    admission = make(1, 4)
    flood = [admit(admission, "flood") for _ in range(4)]
    entry, displaced = admission.admit("x", tenant="b", price_ms=100.0, payload_bytes=10)
    assert displaced == [flood[-1]] and flood[-1].state == "done", "the latest of the fullest gives way"
    assert refusal(admission, tenant="flood").reason is Reason.SERVER_BUSY
    _, displaced = admission.admit("x", tenant="b", price_ms=100.0, payload_bytes=10)
    assert displaced == [flood[2]]
    refusal(admission, tenant="b")
    assert take(admission) is flood[0] and take(admission) is entry, "and it does not wait behind the flood"


def test_remembered_replies_of_a_tenant_do_not_push_out_anothers() -> None:
    async def check() -> None:
        evaluated: list[str] = []

        async def ask(tenant: str, number: int) -> None:
            async def evaluate() -> InferenceReply:
                evaluated.append(f"{tenant}{number}")
                return InferenceReply(bytes(30), "m", "1", "p", Timings(0, 0, 0), {}, "b", 1)

            await window.share(RequestKey(tenant, str(number), "k", "p", "c"), 5.0, evaluate)

        window = RequestWindow(LimitsConfig(request_window_bytes=100))
        await ask("quiet", 0)
        for number in range(9):
            await ask("loud", number)
        await ask("quiet", 0)
        await ask("loud", 8)
        await ask("other", 8)
        await ask("loud", 0)
        assert evaluated == ["quiet0", *(f"loud{i}" for i in range(9)), "other8", "loud0"]

    asyncio.run(check())


def test_a_request_that_would_not_fit_anyway_puts_nobody_out() -> None:
    admission = make(1, 4, max_queue_ms=400.0)
    for _ in range(4):
        admit(admission, "flood")
    refusal(admission, tenant="b", price_ms=350.0)
    assert admission.load().waiting == 4


def test_a_tenants_share_of_the_queue() -> None:
    quotas = {"a": TenantQuota(queue_share=0.5)}
    admission = make(1, 4, tenants=quotas, max_queue_ms=1000.0)
    admit(admission), admit(admission)
    over = refusal(admission)
    assert (over.reason, over.subject) == (Reason.LIMIT_EXCEEDED, "quota.queue_share")
    admit(admission, "b")
    admission = make(1, 99, tenants=quotas, max_queue_ms=1000.0)
    admit(admission, price_ms=300.0)
    assert refusal(admission, price_ms=300.0).subject == "quota.queue_share"


def test_milliseconds_per_minute() -> None:
    clock = Clock()
    admission = make(2, 99, clock, ms_per_minute=600.0, tenants={"rich": TenantQuota(ms_per_minute=1e6)})
    first = admit(admission, price_ms=500.0)
    over = refusal(admission, price_ms=400.0)
    assert (over.reason, over.subject) == (Reason.LIMIT_EXCEEDED, "quota.ms_per_minute")
    assert 30.0 <= (over.retry_after_seconds or 0) <= 38.0, "300 ms flow in within half a minute"
    admit(admission, "rich", 400.0)
    admit(admission, "other", 400.0)
    admission.withdraw(first)
    again = admit(admission, price_ms=600.0)
    while (taken := admission.take([NOWHERE])) and taken[0] is not again:
        pass
    admission.finish(again, 100.0)
    second = admit(admission, price_ms=500.0), refusal(admission, price_ms=10.0)
    assert second, "what was not used is given back, and no more than that"
    clock.now += 600.0
    admit(admission, price_ms=5000.0), "a price above a whole minute's worth needs a full allowance"
    refusal(admission, price_ms=1.0)


def test_running_at_once_and_jobs_that_leave_a_worker_to_calls() -> None:
    admission = make(3, 99, tenants={"a": TenantQuota(max_running=1)})
    first, second = admit(admission), admit(admission)
    assert take(admission) is first and admission.take([NOWHERE]) is None, "one of it at once"
    other = admit(admission, "b")
    assert take(admission) is other
    admission.finish(first, 100.0)
    assert take(admission) is second
    admission = make(3, 99)
    jobs = [admit(admission, lane="job") for _ in range(3)]
    assert [take(admission), take(admission)] == jobs[:2] and admission.take([NOWHERE]) is None
    call = admit(admission)
    assert take(admission) is call
    admission.finish(jobs[0], 100.0)
    assert take(admission) is jobs[2]


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    admission = make(1, 99)
    with pytest.raises(Cancelled) as hopeless:
        admit(admission, floor_ms=90.0, seconds=0.08)
    assert hopeless.value.reason is Reason.DEADLINE_EXCEEDED
    admit(admission, seconds=0.08)  # nobody knows yet how long it takes
    take(admission)
    for _ in range(3):
        admit(admission, "b")
    late = refusal(admission, tenant="b", floor_ms=90.0, seconds=0.45)
    assert late.reason is Reason.SERVER_BUSY and admission.load().waiting == 3
    admit(admission, "c", floor_ms=90.0, seconds=0.45)  # whose turn comes before most of b's
    admit(admission, "b", floor_ms=90.0, seconds=0.75)


def test_prices_follow_what_is_measured() -> None:
    clock = Clock()
    prices = Prices(clock)
    assert prices.price("new").ms == 1000.0 and prices.floor_ms("new") == 0.0
    prices.learn("m", 50.0)
    assert (prices.price("m").ms, prices.price("m").ratio, prices.floor_ms("m")) == (50.0, None, 0.0)
    prices.measured("m", 200.0)
    assert (prices.price("m").ms, prices.price("m").ratio, prices.floor_ms("m")) == (200.0, 4.0, 200.0)
    for _ in range(60):
        prices.measured("m", 100.0)
    assert prices.price("m").ms == pytest.approx(100.0, rel=1e-3) and prices.floor_ms("m") == 100.0
    clock.now += 31.0
    assert [prices.floor_ms("m"), prices.floor_ms("m")] == [0.0, 100.0], "one may try, after a while without any"
    prices.measured("unheard of", 1.0)


def test_quotas_are_configured_by_tenant() -> None:
    config = AdmissionConfig(weight=2.0, max_running=3, tenants={"a": TenantQuota(weight=5.0)})
    assert config.quota("a") == TenantQuota(5.0, 1.0, 3, 0.0) and config.quota("b") == TenantQuota(2.0, 1.0, 3, 0.0)
    for bad in ({"queue_share": 1.5}, {"weight": -1.0}, {"ms_per_minute": float("nan")}):
        with pytest.raises(ConfigError):
            TenantQuota(**bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        AdmissionConfig(queue_share=2.0)


def test_quotas_are_read_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    path.write_text("[admission]\nms_per_minute = 500\n[admission.tenants.acme]\nweight = 3\n[jobs]\nmax_jobs = 7\n")
    config = load_config(path, {"SECATEUR_SERVER_ADMISSION_MAX_QUEUE_MS": "9"})
    assert config.admission.quota("acme") == TenantQuota(3.0, 1.0, 0, 500.0)
    assert (config.admission.max_queue_ms, config.jobs.max_jobs) == (9.0, 7)
    path.write_text("[admission.tenants.acme]\nweigth = 3\n")
    with pytest.raises(ConfigError, match=r"admission\.tenants\.acme\.weigth"):
        load_config(path, {})
