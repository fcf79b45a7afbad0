"""Whose turn it is: shares by weight, nobody starves, and keys that are at hand."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.admission import Admission
from server.engine.fair import Entry, wait_us
from server.engine.settings import AdmissionConfig, TenantQuota

NOWHERE: frozenset[str] = frozenset()
LARGEST_MS = 400


def make(workers: int = 1, affinity_ms: float = 0.0, weights: dict[str, float] | None = None) -> Admission[int]:
    tenants = {name: TenantQuota(weight=weight) for name, weight in (weights or {}).items()}
    config = AdmissionConfig(affinity_ms=affinity_ms, tenants=tenants, max_queue_ms=1e12)
    return Admission(config, workers, 10**6, lambda: 0.0, random.Random(1))


def admit(admission: Admission[int], tenant: str, price_ms: float, key: str = "", item: int = 0) -> Entry[int]:
    return admission.admit(item, tenant=tenant, price_ms=price_ms, payload_bytes=1, key=key)[0]


def take(admission: Admission[int], *resident: frozenset[str]) -> Entry[int]:
    taken = admission.take(resident or [NOWHERE])
    assert taken is not None
    return taken[0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0, 7.0]), min_size=2, max_size=4),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_shares_are_in_proportion_to_weights_within_one_request_each(
    weights: list[float], workers: int, generator: random.Random, with_keys: bool
) -> None:
    """Over any stretch in which both have work waiting; going ahead for keys at hand adds no more than its limit."""
    slack = 300.0 if with_keys else 0.0
    tenants = {f"t{i}": weight for i, weight in enumerate(weights)}
    admission = make(workers, slack, tenants)
    for tenant in tenants:
        for _ in range(120):
            admit(admission, tenant, generator.randint(1, LARGEST_MS), key=f"{tenant}{generator.randint(0, 1)}")
    given_ms = dict.fromkeys(tenants, 0.0)
    running: list[Entry[int]] = []
    for _ in range(110):
        if len(running) == workers:
            done = running.pop(generator.randrange(workers))
            admission.finish(done, done.price_us / 1e3)
        keys = frozenset([f"t{generator.randrange(len(weights))}{generator.randint(0, 1)}"]) if with_keys else NOWHERE
        entry = take(admission, keys)
        running.append(entry)
        given_ms[entry.tenant] += entry.price_us / 1e3
        for a, weight_a in tenants.items():
            for b, weight_b in tenants.items():
                apart = given_ms[a] / weight_a - given_ms[b] / weight_b
                assert apart <= LARGEST_MS / weight_a + LARGEST_MS / weight_b + slack + 1e-6


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 400), st.integers(1, 5), st.randoms(use_true_random=False))
def test_nobody_starves(flood: int, others: int, generator: random.Random) -> None:
    """Whoever comes to a flooded queue is served within one request of every tenant and one of its own per request
    that waits before it; a stream of requests with keys at hand does not hold it back either."""
    admission = make(1, 500.0)
    for _ in range(flood):
        admit(admission, "flood", 100.0, "hot")
    for i in range(others):
        admit(admission, f"o{i}", 100.0, "hot")
    take(admission, frozenset(["hot"]))
    guest = admit(admission, "guest", generator.randint(1, 400), "cold", item=1)
    served = 0
    while guest.state == "waiting":
        admit(admission, "flood", 100.0, "hot")  # and more is coming all the time
        take(admission, frozenset(["hot"]))
        served += 1
    assert served <= 4 + 2 * (others + 1) + 5 * (others + 1)


def test_within_a_tenant_a_cold_request_is_passed_only_so_often() -> None:
    admission = make(1, 500.0)
    cold = admit(admission, "a", 10.0, "cold")
    for _ in range(20):
        admit(admission, "a", 10.0, "hot")
    order = [take(admission, frozenset(["hot"])) for _ in range(6)]
    assert order.index(cold) == 4


def test_a_worker_that_holds_the_keys_is_preferred() -> None:
    admission = make(3)
    for key in ("k2", "none", "k1"):
        admit(admission, "a", 1.0, key)
    resident = [frozenset(["k1", "x"]), frozenset(["k2", "y"]), frozenset(["z"])]
    taken = [admission.take(resident) for _ in range(3)]
    assert [(t[0].key, t[1]) for t in taken if t] == [("k2", 1), ("k1", 0), ("none", 2)]


def test_a_newcomer_is_owed_nothing_for_the_time_it_was_away() -> None:
    admission = make()
    for _ in range(50):
        entry = admit(admission, "busy", 100.0)
        assert take(admission) is entry
        admission.finish(entry, 100.0)
    for tenant in ("busy", "new") * 6:
        admit(admission, tenant, 100.0)
    order = "".join(take(admission).tenant[0] for _ in range(12))
    assert order in ("nb" * 6, "bn" * 6, "n" + "nb" * 5 + "b"), order


def test_a_tenant_kept_back_by_its_own_quota_is_owed_nothing_for_it() -> None:
    config = AdmissionConfig(affinity_ms=0.0, tenants={"capped": TenantQuota(max_running=1)}, max_queue_ms=1e12)
    admission: Admission[int] = Admission(config, 2, 99, lambda: 0.0, random.Random(1))
    for tenant in ("capped", "other") * 20:
        admit(admission, tenant, 100.0)
    long = take(admission)
    assert long.tenant == "capped"
    for _ in range(10):
        other = take(admission)
        assert other.tenant == "other"
        admission.finish(other, 100.0)
    admission.finish(long, 100.0)
    order = ""
    for _ in range(8):
        entry = take(admission)
        order += entry.tenant[0]
        admission.finish(entry, 100.0)
    assert order.endswith("ococo"), order


def test_a_tenant_is_charged_for_what_it_used() -> None:
    """One whose requests take three times their price gets a third as many of them."""
    admission = make()
    for tenant in ("long", "true"):
        for _ in range(200):
            admit(admission, tenant, 100.0)
    counts = {"long": 0, "true": 0}
    for _ in range(160):
        entry = take(admission)
        counts[entry.tenant] += 1
        admission.finish(entry, 300.0 if entry.tenant == "long" else 100.0)
    assert counts["true"] == pytest.approx(3 * counts["long"], abs=4)


def test_calls_and_jobs_of_one_tenant_take_turns() -> None:
    admission = make(2)
    for i in range(4):
        admission.admit(i, tenant="a", price_ms=100.0, payload_bytes=1, lane="job")
        admit(admission, "a", 100.0)
    lanes = []
    for _ in range(8):
        entry = take(admission)
        lanes.append(entry.lane)
        admission.finish(entry, 100.0)
    assert sorted(lanes[:4]) == ["call", "call", "job", "job"]


def test_put_back_comes_next_and_is_not_charged_twice() -> None:
    admission = make()
    first, _ = admit(admission, "a", 100.0), admit(admission, "b", 10.0)
    assert take(admission) is first
    admission.put_back(first)
    assert take(admission) is first and admission._flow("a").finish == 100_000


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 50), max_size=4), st.integers(0, 200))
def test_the_predicted_wait_fills_the_workers_as_they_become_free(busy: list[int], ahead: int) -> None:
    workers = len(busy) + 1
    wait = wait_us(busy, workers, ahead)
    filled = sum(max(0.0, wait - b) for b in [*busy, 0])
    assert filled == pytest.approx(ahead) or (ahead == 0 and wait == 0)
