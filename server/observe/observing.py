"""What watches a server, put together from its configuration: metrics behind their port, and traces."""

from __future__ import annotations

import asyncio
import importlib.util
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..config import ServerConfig
from ..errors import ConfigError
from .endpoint import MetricsEndpoint, split_address
from .events import Observer, nobody, several
from .metrics import Metrics
from .settings import TracingConfig

if TYPE_CHECKING:
    from .tracing import Tracing

__all__ = ["Observing", "problems"]

_SDK = "opentelemetry.sdk"
_EXPORTER = "opentelemetry.exporter.otlp.proto.grpc"


@dataclass
class Observing:
    """Who listens to a server's events; `metrics_address` is where they can be scraped, empty when they are off.

    `interceptors` go around all others of the server.
    """

    observer: Observer = nobody
    metrics_address: str = ""
    interceptors: list[Any] = field(default_factory=list)
    _endpoint: MetricsEndpoint | None = None
    _tracing: Tracing | None = None

    @classmethod
    async def open(cls, config: ServerConfig, build: str) -> Observing:
        """ConfigError for a port that cannot be opened, and for traces without the extra that they need."""
        listeners: list[Observer] = []
        observing = cls()
        if config.metrics.address:
            kept = Metrics(build, config.metrics.max_tenants)
            observing._endpoint = await MetricsEndpoint.open(config.metrics.address, kept.registry)
            observing.metrics_address = observing._endpoint.address
            listeners.append(kept)
        if config.tracing.enabled:
            try:
                observing._tracing = _open_tracing(config.tracing, build)
            except ConfigError:
                await observing.close()
                raise
            observing.interceptors = [observing._tracing.interceptor]
            listeners.append(observing._tracing)
        observing.observer = several(listeners)
        return observing

    async def close(self) -> None:
        if self._endpoint is not None:
            await self._endpoint.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)


def _open_tracing(config: TracingConfig, build: str) -> Tracing:
    for problem in _tracing_problems(config):
        raise ConfigError(problem)
    from . import tracing  # not before it is asked for: the library is an extra

    return tracing.Tracing(config, build, tracing.export_to(config.endpoint))


def _tracing_problems(config: TracingConfig) -> list[str]:
    if not config.enabled:
        return []
    if not all(_is_installed(name) for name in (_SDK, _EXPORTER)):
        return ["cannot use tracing.enabled: OpenTelemetry is not installed; try pip install 'secateur[otel]'"]
    if not 0 < config.sample_ratio <= 1:
        return [f"cannot use tracing.sample_ratio = {config.sample_ratio}: need a number above 0 and at most 1"]
    return []


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a parent is missing, or is blocked
        return False


def problems(config: ServerConfig) -> list[str]:
    """What would keep metrics or traces from starting; opens nothing."""
    if config.metrics.address:
        split_address(config.metrics.address)
    return _tracing_problems(config.tracing)
