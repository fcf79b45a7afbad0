"""What watches a server, put together from its configuration: metrics behind their port."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import ServerConfig
from .endpoint import MetricsEndpoint
from .events import Observer, several
from .metrics import Metrics

__all__ = ["Observing"]


@dataclass
class Observing:
    """Who listens to a server's events; `metrics_address` is where they can be scraped, empty when they are off."""

    observer: Observer
    metrics_address: str
    _endpoint: MetricsEndpoint | None

    @classmethod
    async def open(cls, config: ServerConfig, build: str) -> Observing:
        """ConfigError for a port that cannot be opened."""
        if not config.metrics.address:
            return cls(several([]), "", None)
        kept = Metrics(build, config.metrics.max_tenants)
        endpoint = await MetricsEndpoint.open(config.metrics.address, kept.registry)
        return cls(several([kept]), endpoint.address, endpoint)

    async def close(self) -> None:
        if self._endpoint is not None:
            await self._endpoint.close()
