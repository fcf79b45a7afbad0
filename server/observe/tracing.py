"""OpenTelemetry traces: a span for each call, and below it the queue, the loading of keys, the evaluation and its layers.

Needs the extra `otel`; only Observing imports this, and only where traces are switched on. The tracer is the server's own,
not the process's. Spans hold names, numbers and reasons: no id of a key set, an upload or a request, and no message of an
exception.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, cast

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from protos.status import code_of

from . import logs
from .events import CallEnded, Evaluated, Event
from .families import OTHER
from .settings import TracingConfig

__all__ = ["Tracing", "export_to"]

_TRACED = ("/secateur.v1.", "/inference.")
_CARRIED = ("traceparent", "tracestate")
_MAX_LAYERS = 256  # spans of one evaluation; the layers after them are in the evaluation's own span only
_NS_PER_MS = 1e6
_PARTING_SECONDS = 2.0


class _Batches(BatchSpanProcessor):
    """Gives the last batches a moment, where the library would let a server that ends wait for a collector that is down."""

    def __init__(self, exporter: SpanExporter) -> None:
        super().__init__(exporter)
        self._sender = exporter

    def shutdown(self) -> None:
        patience = threading.Timer(_PARTING_SECONDS, self._sender.shutdown)
        patience.start()
        try:
            super().shutdown()  # type: ignore[no-untyped-call]
        finally:
            patience.cancel()


def export_to(endpoint: str) -> SpanProcessor:
    """Sends spans by OTLP, from a thread and in batches; what a collector does not take in time is dropped."""
    return _Batches(OTLPSpanExporter(endpoint=endpoint or None))


class Tracing:
    """An observer, and the interceptor that begins the spans it hears of. `close` blocks until the last spans are sent."""

    def __init__(self, config: TracingConfig, build: str, processor: SpanProcessor) -> None:
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(config.sample_ratio)),
            resource=Resource.create({"service.name": "secateur", "service.version": build}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("secateur.server", build)
        self.interceptor = _Interceptor(self._tracer)

    def close(self) -> None:
        self._provider.shutdown()

    def __call__(self, event: Event, /) -> None:
        if isinstance(event, CallEnded):
            _finish(trace.get_current_span(), event)
        elif isinstance(event, Evaluated) and trace.get_current_span().is_recording():
            self._add_work(event)

    def _add_work(self, event: Evaluated) -> None:
        """Spans of what is over, laid out backwards from now."""
        ended = time.time_ns()
        started = ended - _ns(event.evaluate_ms)
        loading = started - _ns(event.load_ms)
        waiting = loading - _ns(event.queue_ms)
        about: dict[str, str | float] = {"secateur.model": event.model, "secateur.version": event.version}
        self._span("queue", waiting, loading, about)
        if event.load_ms > 0:
            self._span("load keys", loading, started, about)
        if event.predicted_ms is not None:
            about = {**about, "secateur.predicted_ms": event.predicted_ms}
        evaluation = self._tracer.start_span("evaluate", start_time=started, attributes=about)
        with trace.use_span(evaluation):
            self._add_layers(event, started)
        evaluation.end(ended)

    def _add_layers(self, event: Evaluated, started: int) -> None:
        """One after the other in the order of their first operations; layers that interleave are not shown so."""
        for layer, ms in list(event.layer_ms.items())[:_MAX_LAYERS]:
            ended = started + _ns(ms)
            family = event.families.get(layer, OTHER)
            self._span("layer", started, ended, {"secateur.layer": layer, "secateur.family": family})
            started = ended

    def _span(self, name: str, started: int, ended: int, about: dict[str, Any]) -> None:
        self._tracer.start_span(name, start_time=started, attributes=about).end(ended)


def _ns(ms: float) -> int:
    return round(ms * _NS_PER_MS)


def _finish(span: trace.Span, event: CallEnded) -> None:
    code = code_of(event.reason) if event.reason else grpc.StatusCode.OK
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    span.set_attribute("secateur.tenant", event.tenant)
    if event.reason:
        span.set_attribute("secateur.reason", event.reason)
        span.set_status(Status(StatusCode.ERROR, event.reason))


class _Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """The outermost one: its span is current in everything that a call does, and its trace is on the call's log lines."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def _call(self, method: str, context: Any) -> Iterator[None]:
        carrier = {key: value for key, value in context.invocation_metadata() or () if key in _CARRIED}
        service, _, name = method.lstrip("/").partition("/")
        about = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        with self._tracer.start_as_current_span(
            f"{service}/{name}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=about,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            logs.begin(trace=trace.format_trace_id(span.get_span_context().trace_id))
            yield

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        method = handler_call_details.method
        handler: Any = await continuation(handler_call_details)
        if handler is None or not method.startswith(_TRACED):
            return cast("grpc.RpcMethodHandler[Any, Any]", handler)
        made: Any
        if handler.response_streaming:

            async def stream(requests: Any, context: Any) -> AsyncIterator[Any]:
                with self._call(method, context):
                    async with aclosing(handler.stream_stream(requests, context)) as replies:
                        async for reply in replies:
                            yield reply

            made = grpc.stream_stream_rpc_method_handler(
                cast(Any, stream), handler.request_deserializer, handler.response_serializer
            )
            return cast("grpc.RpcMethodHandler[Any, Any]", made)

        async def answer(requests: Any, context: Any) -> Any:
            with self._call(method, context):
                return await handler.stream_unary(requests, context)

        made = grpc.stream_unary_rpc_method_handler(
            cast(Any, answer), handler.request_deserializer, handler.response_serializer
        )
        return cast("grpc.RpcMethodHandler[Any, Any]", made)
