"""The trace that a caller's program is in, sent along with its calls where that program uses OpenTelemetry."""

from __future__ import annotations

import sys

__all__ = ["trace_metadata"]

_ACTIVE = "opentelemetry.trace"


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """W3C traceparent (and tracestate) of the span that is current here; nothing where there is none.

    A program that has not loaded OpenTelemetry does not load it for this. Baggage stays here: it may hold anything.
    """
    if _ACTIVE not in sys.modules:
        return ()
    try:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        return ()
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return tuple(carrier.items())
