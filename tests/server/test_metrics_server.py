"""The metrics of a running server, as a scrape of its port shows them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import pytest
from harness import KEYS, Caller, failure, make_config
from scraping import Scrape

from protos.gen.secateur.v1 import inference_pb2
from server.config import ServerConfig
from server.running import RunningServer, start


def observed(tmp_path: Path) -> ServerConfig:
    config = make_config(tmp_path, engine={"workers": 2})
    return replace(config, metrics=replace(config.metrics, address="0"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Caller]]:
    config = observed(tmp_path_factory.mktemp("observed"))
    with start(config) as server, grpc.insecure_channel(server.address) as channel:
        yield server, Caller(channel)


def test_a_server_shows_what_it_did(running: tuple[RunningServer, Caller]) -> None:
    server, caller = running
    assert server.metrics_address.startswith("127.0.0.1:")
    before = Scrape.at(server.metrics_address)
    key_set_id = caller.upload().key_set_id
    for _ in range(3):
        caller.infer(key_set_id, b"echo:x", request_id="a-request-id")
        caller.infer(key_set_id, b"echo:x")
    failure(lambda: caller.infer(key_set_id, b"echo:x", model="nope"))
    scrape = Scrape.at(server.metrics_address)

    def added(name: str, **labels: str) -> float:
        return scrape(name, **labels) - before(name, **labels)

    infer = "InferenceService/Infer"
    assert added("requests_total", method=infer, reason="OK") == 6
    assert added("requests_total", method=infer, reason="MODEL_UNKNOWN") == 1
    assert added("requests_total", method="KeyService/CommitUpload", reason="OK") == 1
    assert added("evaluation_duration_seconds_count", model="digits") == 4, "of one request id there is one evaluation"
    assert added("received_bytes_total", method="KeyService/UploadChunks") >= len(KEYS)
    assert added("sent_bytes_total", method=infer) >= 6 * 64
    assert added("tenant_evaluation_seconds_total", tenant="anonymous") > 0
    for family in ("linear", "activation", "other"):
        assert added("layer_duration_seconds_count", model="digits", family=family) == 4
    assert added("evaluation_predicted_ratio_count", model="digits") == 4, "the fake runtime has an estimate"
    assert (added("upload_bytes_total"), added("store_bytes")) == (len(KEYS), len(KEYS))
    assert scrape("workers") == 2 and scrape("queue_length") == 0
    assert sum(scrape("key_cache_bytes", worker=w) for w in "01") >= len(KEYS)
    assert sum(added("key_cache_hits_total", worker=w) for w in "01") >= 3
    assert scrape.samples["process_resident_memory_bytes", frozenset()] > 1 << 20
    for secret in (key_set_id, "a-request-id"):
        assert secret not in scrape.text


def until(server: RunningServer, holds: Callable[[Scrape], bool]) -> Scrape:
    """The first scrape of which `holds`, within ten seconds."""
    end = time.monotonic() + 10
    while not holds(scrape := Scrape.at(server.metrics_address)):
        assert time.monotonic() < end, scrape.text
        time.sleep(0.01)  # between two scrapes
    return scrape


def test_the_queue_is_seen_while_it_lasts(running: tuple[RunningServer, Caller]) -> None:
    server, caller = running
    key_set_id = caller.upload().key_set_id
    calls = [caller.inference.Infer.future(caller.request(key_set_id, b"sleep:20"), timeout=20) for _ in range(5)]
    scrape = until(server, lambda scrape: scrape("queue_length") == 3)
    assert scrape("queue_predicted_seconds") > 0
    for call in calls:
        call.cancel()
    scrape = until(server, lambda scrape: scrape("queue_length") == 0)
    assert scrape("queue_predicted_seconds") == 0
    until(server, lambda scrape: scrape("requests_total", method="InferenceService/Infer", reason="CANCELLED") == 5)


def test_jobs_are_seen(running: tuple[RunningServer, Caller]) -> None:
    server, caller = running
    call = caller.request(caller.upload().key_set_id, b"echo:x")
    job_id = caller.inference.SubmitJob(inference_pb2.SubmitJobRequest(call=call), timeout=20).job_id
    scrape = until(server, lambda scrape: scrape("jobs", state="succeeded") == 1)
    assert scrape.labels("state") >= {"queued", "running", "succeeded"} and job_id not in scrape.text


def test_a_lost_worker_is_seen(running: tuple[RunningServer, Caller]) -> None:
    server, caller = running
    key_set_id = caller.upload().key_set_id
    assert failure(lambda: caller.infer(key_set_id, b"die:")).reason == "WORKER_LOST"
    assert Scrape.at(server.metrics_address)("workers_lost_total") == 1


@pytest.mark.parametrize(("method", "path", "code"), [("GET", "/", 404), ("POST", "/metrics", 405)])
def test_nothing_but_a_scrape_is_answered(
    running: tuple[RunningServer, Caller], method: str, path: str, code: int
) -> None:
    request = Request(
        f"http://{running[0].metrics_address}{path}", method=method, data=b"" if method == "POST" else None
    )
    with pytest.raises(HTTPError) as refused, urlopen(request, timeout=10):
        pass
    assert refused.value.code == code
    refused.value.close()


@pytest.mark.parametrize("sent", [b"no http\r\n\r\n", b"GET /metrics\r\n\r\n", b"x" * 40_000])
def test_no_http_is_refused(running: tuple[RunningServer, Caller], sent: bytes) -> None:
    host, _, port = running[0].metrics_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_idle_connections_do_not_pile_up(running: tuple[RunningServer, Caller]) -> None:
    """Beyond a few, callers are told to come later, and scrapes go on once the idle ones have left."""
    host, _, port = running[0].metrics_address.rpartition(":")
    idle = [socket.create_connection((host, int(port)), timeout=10) for _ in range(40)]
    try:
        assert any(c.recv(100).startswith(b"HTTP/1.1 503 ") for c in idle[16:])
    finally:
        for connection in idle:
            connection.close()
    done = threading.Event()
    while not done.is_set():  # the last of the idle ones is noticed gone a moment later
        try:
            assert Scrape.at(running[0].metrics_address)("workers") >= 0
            done.set()
        except HTTPError as error:
            assert error.code == 503
            error.close()


def test_metrics_are_off_by_default(tmp_path: Path) -> None:
    with start(make_config(tmp_path)) as server:
        assert server.metrics_address == ""


def test_a_server_that_ends_lets_its_metrics_port_go(tmp_path: Path) -> None:
    """Also with a connection on it that says nothing."""
    with start(observed(tmp_path)) as server:
        host, _, port = server.metrics_address.rpartition(":")
        idle = socket.create_connection((host, int(port)), timeout=10)
        assert Scrape.at(server.metrics_address)("workers") == 2
    with idle:
        assert idle.recv(1) == b"", "hung up, not left to time out"
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind((host, int(port)))
