"""What the server can be told about its metrics and traces: sections of the configuration file."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MetricsConfig", "TracingConfig"]


@dataclass(frozen=True)
class MetricsConfig:
    """Prometheus metrics over HTTP. They name models and tenants, and so are for the operator alone."""

    address: str = ""  # host:port, or a port alone for the loopback interface; empty: off
    max_tenants: int = 50  # tenants with labels of their own; further ones are counted together as "other"


@dataclass(frozen=True)
class TracingConfig:
    """OpenTelemetry traces, sent by OTLP over gRPC; needs the extra `otel`."""

    enabled: bool = False
    endpoint: str = (
        ""  # of the collector, as http://host:port; empty: OTEL_EXPORTER_OTLP_ENDPOINT, or the exporter's default
    )
    sample_ratio: float = 1.0  # of the traces that begin here; a caller's own decision is kept
