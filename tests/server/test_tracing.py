"""Traces of a running server, as an exporter in memory gets them."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from fake_runtime import FAMILIES, LAYERS
from harness import Caller, failure, make_config, make_models
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from client import Client
from client.tracing import trace_metadata
from client.transport import Transport
from server.checks import check
from server.config import ServerConfig
from server.errors import ConfigError
from server.observe import tracing
from server.observe.settings import TracingConfig
from server.running import RunningServer, start

INFER = "secateur.v1.InferenceService/Infer"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)


def traced(tmp_path: Path, **changes: Any) -> ServerConfig:
    config = make_config(tmp_path)
    return replace(config, tracing=replace(config.tracing, **{"enabled": True, **changes}))


Traced = tuple[RunningServer, Caller, InMemorySpanExporter]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "export_to", lambda endpoint: SimpleSpanProcessor(exporter))
        server = start(traced(tmp_path_factory.mktemp("traced")))
    with server, grpc.insecure_channel(server.address) as channel:
        yield server, Caller(channel), exporter


@pytest.fixture
def key_set(running: Traced) -> str:
    return running[1].upload().key_set_id


@pytest.fixture
def spans(running: Traced, key_set: str) -> Callable[[], dict[str, list[ReadableSpan]]]:
    """The spans, by name, of calls that were made since; a call's own span ends after its answer has left."""
    exporter = running[2]
    exporter.clear()

    def read() -> dict[str, list[ReadableSpan]]:
        # One more call on the same loop: by its answer the calls before it have ended.
        running[1].get_model()
        found: dict[str, list[ReadableSpan]] = {}
        for span in exporter.get_finished_spans():
            found.setdefault(span.name, []).append(span)
        return found

    return read


def infer(running: Traced, key_set: str, payload: bytes, metadata: Any = (), **changes: Any) -> Any:
    caller = running[1]
    return caller.inference.Infer(caller.request(key_set, payload, **changes), timeout=20, metadata=metadata)


def parent_of(span: ReadableSpan) -> int:
    return span.parent.span_id if span.parent is not None else 0


def test_a_call_and_what_it_waited_for(running: Traced, key_set: str, spans: Any) -> None:
    infer(running, key_set, b"sleep:0.05", request_id="canary")
    found = spans()
    (call,), (queue,), (evaluate,) = found[INFER], found["queue"], found["evaluate"]
    assert call.kind is SpanKind.SERVER and call.parent is None
    assert call.attributes is not None
    assert dict(call.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "secateur.v1.InferenceService",
        "rpc.method": "Infer",
        "rpc.grpc.status_code": 0,
        "secateur.tenant": "anonymous",
    }
    assert call.resource.attributes["service.name"] == "secateur"
    assert {parent_of(queue), parent_of(evaluate)} == {call.context.span_id}
    assert evaluate.attributes is not None and evaluate.attributes["secateur.model"] == "digits"
    assert queue.end_time <= evaluate.start_time and evaluate.end_time - evaluate.start_time >= 50e6
    assert call.start_time <= queue.start_time + 5e6 and evaluate.end_time <= call.end_time
    for text in ("canary", key_set):
        assert text not in "".join(span.to_json() for spans in found.values() for span in spans)


def test_layers_are_below_the_evaluation_in_order(running: Traced, key_set: str, spans: Any) -> None:
    infer(running, key_set, b"echo:x")
    found = spans()
    (evaluate,), layers = found["evaluate"], found["layer"]
    assert [s.attributes["secateur.layer"] for s in layers] == list(dict.fromkeys(LAYERS))
    assert [s.attributes["secateur.family"] for s in layers] == [
        FAMILIES.get(n, "other") for n in dict.fromkeys(LAYERS)
    ]
    assert {parent_of(span) for span in layers} == {evaluate.context.span_id}
    ends = [span.end_time for span in layers]
    assert [span.start_time for span in layers] == [evaluate.start_time, *ends[:-1]] and ends[-1] <= evaluate.end_time


def test_loading_keys_is_a_span_where_they_had_to_be_loaded(running: Traced, spans: Any) -> None:
    caller = running[1]
    key_set_id = caller.upload(b"KEYS of a set that no worker has loaded for version 2").key_set_id
    infer(running, key_set_id, b"echo:x", version="2")
    found = spans()
    (load,), (evaluate,) = found["load keys"], found["evaluate"]
    assert load.end_time == evaluate.start_time and load.attributes["secateur.version"] == "2"


def test_the_callers_trace_goes_on(running: Traced, key_set: str, spans: Any) -> None:
    infer(running, key_set, b"echo:x", SAMPLED)
    found = spans()
    (call,) = found[INFER]
    assert f"{parent_of(call):016x}" == PARENT
    every = [found[INFER][0], *found["queue"], *found["evaluate"], *found["layer"]]
    assert {f"{span.context.trace_id:032x}" for span in every} == {TRACE}


@pytest.mark.parametrize("value", ["", "garbage", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", "00-" * 400])
def test_a_malformed_traceparent_is_no_parent(running: Traced, key_set: str, spans: Any, value: str) -> None:
    infer(running, key_set, b"echo:x", (("traceparent", value),))
    (call,) = spans()[INFER]
    assert call.parent is None and call.context.trace_id


def test_the_callers_decision_not_to_sample_is_kept(running: Traced, key_set: str, spans: Any) -> None:
    infer(running, key_set, b"echo:x", (("traceparent", f"00-{TRACE}-{PARENT}-00"),))
    assert INFER not in spans()


@pytest.mark.parametrize(
    ("payload", "changes", "reason", "code"),
    [
        (b"echo:x", {"model": "nope"}, "MODEL_UNKNOWN", grpc.StatusCode.NOT_FOUND),
        (b"library:", {}, "INTERNAL", grpc.StatusCode.INTERNAL),
        (b"die:", {}, "WORKER_LOST", grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_a_failure_names_its_reason_and_nothing_else(
    running: Traced, key_set: str, spans: Any, payload: bytes, changes: Any, reason: str, code: grpc.StatusCode
) -> None:
    failure(lambda: infer(running, key_set, payload, **changes))
    (call,) = spans()[INFER]
    assert call.status.status_code is StatusCode.ERROR and call.status.description == reason
    assert call.attributes["secateur.reason"] == reason
    assert call.attributes["rpc.grpc.status_code"] == code.value[0]
    assert not call.events, "an exception's text may hold anything"


def test_the_log_names_the_trace(running: Traced, key_set: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "secateur.server")
    infer(running, key_set, b"echo:x", SAMPLED)
    running[1].get_model()
    facts = [r.facts for r in caplog.records if r.getMessage() == "call"]  # type: ignore[attr-defined]
    assert next(f for f in facts if f["method"] == "InferenceService/Infer")["trace"] == TRACE


def test_the_client_sends_the_span_that_it_is_called_in(running: Traced, spans: Any) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("an application")
    with grpc.insecure_channel(running[0].address) as channel:
        transport = Transport(channel, running[0].address, timeout_seconds=20)
        with tracer.start_as_current_span("work") as work:
            transport.list_models()
        transport.list_models()
    inside, outside = spans()["secateur.v1.ModelService/ListModels"]
    assert inside.context.trace_id == work.get_span_context().trace_id
    assert parent_of(inside) == work.get_span_context().span_id and outside.parent is None
    assert trace_metadata() == () and Client


def test_a_client_does_not_load_opentelemetry_for_this() -> None:
    code = (
        "import sys; from client.tracing import trace_metadata; import client.transport; "
        "print(trace_metadata(), any(m.startswith('opentelemetry') for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["()", "False"]


def test_traces_without_the_extra_are_a_configuration_error(tmp_path: Path) -> None:
    """In a process where OpenTelemetry cannot be imported: refused by `check` and at the start, and served when off."""
    make_models(tmp_path / "models")
    text = 'address = "127.0.0.1:0"\nmodels = "models"\nstate = "state"\n[engine]\nbackend = "fake"\nruntime = "fake_runtime"\n'
    (tmp_path / "off.toml").write_text(text)
    (tmp_path / "on.toml").write_text(text + "[tracing]\nenabled = true\n")
    code = f"""
import json, sys
sys.modules["opentelemetry"] = None
sys.path.append({str(Path(__file__).parent)!r})
from server import check, load_config, start
from server.errors import ConfigError
on, off = (load_config({str(tmp_path)!r} + name) for name in ("/on.toml", "/off.toml"))
try:
    start(on).stop()
except ConfigError as error:
    said = error.message
start(off).stop()
print(json.dumps([check(on), said, check(off)]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    problems, said, without = json.loads(done.stdout)
    assert [p for p in problems if p not in without] == [said] and "secateur[otel]" in said


class _Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.names: list[str] = []

    def Export(self, request: Any, context: Any) -> Any:
        self.names += [s.name for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


def test_a_collector_gets_the_spans_by_the_servers_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_PARTING_SECONDS", 60.0)  # on a busy machine
    receiver, collector = grpc.server(ThreadPoolExecutor(1)), _Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, receiver)
    port = receiver.add_insecure_port("127.0.0.1:0")
    receiver.start()
    try:
        with (
            start(traced(tmp_path, endpoint=f"http://127.0.0.1:{port}")) as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            caller = Caller(channel)
            caller.infer(caller.upload().key_set_id, b"echo:x")
    finally:
        receiver.stop(None).wait()
    assert {INFER, "queue", "evaluate", "layer", "secateur.v1.KeyService/CommitUpload"} <= set(collector.names)


def test_a_collector_that_is_down_does_not_keep_a_server_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library by itself waits for an export under way; here the exporter is told to give up."""
    given_up = threading.Event()

    class Stuck(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            given_up.wait(60)
            return SpanExportResult.FAILURE

        def shutdown(self) -> None:
            given_up.set()

    monkeypatch.setattr(tracing, "_PARTING_SECONDS", 0.01)
    traced = tracing.Tracing(TracingConfig(enabled=True), "1", tracing._Batches(Stuck()))
    traced._tracer.start_span("x").end()
    started = time.monotonic()
    traced.close()
    assert given_up.is_set() and time.monotonic() - started < 30


@pytest.mark.parametrize("ratio", [1.5, float("nan")])
def test_a_ratio_that_is_none_is_a_configuration_error(tmp_path: Path, ratio: float) -> None:
    with pytest.raises(ConfigError, match="sample_ratio"):
        start(traced(tmp_path, sample_ratio=ratio))
    assert any("sample_ratio" in problem for problem in check(traced(tmp_path, sample_ratio=1.5)))
