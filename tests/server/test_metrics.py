"""Metrics: what each event adds up to, and what labels may say."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest
from scraping import Scrape

from server.errors import ConfigError
from server.observe.endpoint import MetricsEndpoint, split_address
from server.observe.events import (
    BytesUploaded,
    CallEnded,
    Evaluated,
    Event,
    JobsChanged,
    KeyCacheChanged,
    QueueChanged,
    StoreChanged,
    WorkerLost,
    WorkerUp,
    nobody,
    several,
)
from server.observe.metrics import Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("1.2.3", max_tenants=2)


def told(metrics: Metrics, *events: Event) -> Scrape:
    for event in events:
        metrics(event)
    return Scrape.of(metrics)


def test_calls_are_counted_by_method_and_reason(metrics: Metrics) -> None:
    scrape = told(
        metrics,
        CallEnded("InferenceService/Infer", "", "a", 0.2, received_bytes=400, sent_bytes=200),
        CallEnded("InferenceService/Infer", "", "a", 0.4, received_bytes=100, sent_bytes=50),
        CallEnded("InferenceService/Infer", "WORKER_LOST", "a", 3.0),
    )
    method = "InferenceService/Infer"
    assert scrape("requests_total", method=method, reason="OK") == 2
    assert scrape("requests_total", method=method, reason="WORKER_LOST") == 1
    assert scrape("request_duration_seconds_sum", method=method) == pytest.approx(3.6)
    assert scrape("request_duration_seconds_bucket", method=method, le="0.25") == 1
    assert [scrape(f"{way}_bytes_total", method=method) for way in ("received", "sent")] == [500, 250]
    assert scrape("build_info", version="1.2.3") == 1
    assert "secateur_rejections_total{" not in scrape.text, "a lost worker turns nobody away"


def test_refusals_are_counted_by_tenant_up_to_a_number_of_tenants(metrics: Metrics) -> None:
    busy = [CallEnded("I/Infer", "SERVER_BUSY", f"tenant-{n}", 0.01) for n in range(50)]
    scrape = told(metrics, *busy, CallEnded("I/Infer", "LIMIT_EXCEEDED", "tenant-0", 0.01))
    assert scrape("rejections_total", reason="SERVER_BUSY", tenant="tenant-0") == 1
    assert scrape("rejections_total", reason="LIMIT_EXCEEDED", tenant="tenant-0") == 1
    assert scrape("rejections_total", reason="SERVER_BUSY", tenant="other") == 48
    assert scrape.labels("tenant") == {"tenant-0", "tenant-1", "other"}


def test_evaluations_by_model_and_layer_family(metrics: Metrics) -> None:
    done = Evaluated(
        model="digits",
        version="1",
        queue_ms=40.0,
        load_ms=0.0,
        evaluate_ms=500.0,
        layer_ms={"fc1": 200.0, "act": 100.0, "fc2": 150.0, "strange": 10.0},
        families={"fc1": "linear", "fc2": "linear", "act": "activation"},
        predicted_ms=400.0,
        tenant="acme",
    )
    scrape = told(metrics, done, replace(done, load_ms=2000.0))
    for family, seconds in (("linear", 0.35), ("activation", 0.1), ("other", 0.01)):
        assert scrape("layer_duration_seconds_sum", model="digits", family=family) == pytest.approx(2 * seconds)
        assert scrape("layer_duration_seconds_count", model="digits", family=family) == 2, "one per evaluation"
    assert scrape("evaluation_duration_seconds_sum", model="digits") == pytest.approx(1.0)
    assert scrape("tenant_evaluation_seconds_total", tenant="acme") == pytest.approx(1.0)
    assert scrape("load_duration_seconds_count", model="digits") == 1, "keys that were loaded already are no load"
    assert scrape("queue_wait_seconds_sum") == pytest.approx(0.08)
    ratio = [scrape(f"evaluation_predicted_ratio_{part}", model="digits") for part in ("sum", "count")]
    assert ratio == pytest.approx([1.6, 2])


def test_an_unpriced_or_immeasurable_evaluation_has_no_ratio(metrics: Metrics) -> None:
    unpriced = Evaluated("digits", "1", 0.0, 0.0, 5.0)
    scrape = told(metrics, unpriced, replace(unpriced, evaluate_ms=0.0, predicted_ms=3.0))
    assert scrape("evaluation_duration_seconds_count", model="digits") == 2
    assert scrape("evaluation_predicted_ratio_count", model="digits") == 0


def test_workers_and_their_key_caches_across_a_loss(metrics: Metrics) -> None:
    scrape = told(metrics, WorkerUp(0), WorkerUp(1), KeyCacheChanged(0, 700, 3, 2, 1), KeyCacheChanged(0, 800, 5, 2, 1))
    assert (scrape("workers"), scrape("workers_lost_total")) == (2, 0)
    assert scrape("key_cache_bytes", worker="0") == 800
    scrape = told(metrics, WorkerLost(0))
    assert (scrape("workers"), scrape("workers_lost_total"), scrape("key_cache_bytes", worker="0")) == (1, 1, 0)
    scrape = told(metrics, WorkerUp(0), KeyCacheChanged(0, 700, 1, 1, 0))
    counts = [scrape(f"key_cache_{name}_total", worker="0") for name in ("hits", "misses", "evictions")]
    assert counts == [6, 3, 1], "a new process counts from zero, the server goes on"


def test_gauges_follow(metrics: Metrics) -> None:
    scrape = told(
        metrics,
        QueueChanged(7, 1500.0),
        QueueChanged(3, 500.0),
        BytesUploaded(10),
        BytesUploaded(5),
        StoreChanged(99),
        JobsChanged({"running": 2, "done": 1}),
    )
    assert (scrape("queue_length"), scrape("queue_predicted_seconds")) == (3, 0.5)
    assert (scrape("upload_bytes_total"), scrape("store_bytes")) == (15, 99)
    assert (scrape("jobs", state="running"), scrape("jobs", state="done")) == (2, 1)


def test_two_servers_metrics_do_not_meet() -> None:
    one, two = Metrics("1", 5), Metrics("1", 5)
    one(BytesUploaded(10))
    assert (Scrape.of(one)("upload_bytes_total"), Scrape.of(two)("upload_bytes_total")) == (10, 0)


def test_a_faulty_observer_is_nobodys_fault_but_its_own(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []

    def faulty(event: Event, /) -> None:
        raise RuntimeError("broken")

    several([faulty, heard.append])(BytesUploaded(1))
    assert heard == [BytesUploaded(1)]
    assert any(record.exc_info for record in caplog.records)
    assert several([]) is nobody


@pytest.mark.parametrize(
    ("address", "means"),
    [("9464", ("127.0.0.1", 9464)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("[::1]:2", ("::1", 2)), (":3", ("127.0.0.1", 3))],
)
def test_a_port_alone_is_on_loopback(address: str, means: tuple[str, int]) -> None:
    assert split_address(address) == means


@pytest.mark.parametrize("address", ["host", "host:", "1:65536", "http://x:y", "-1"])
def test_malformed_addresses_are_configuration_errors(address: str) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.address"):
        split_address(address)


async def test_a_port_in_use_is_a_configuration_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="try another port"):
            await MetricsEndpoint.open(str(taken.getsockname()[1]), Metrics("1", 1).registry)
