"""Reading a server's metrics as Prometheus does."""

from __future__ import annotations

from urllib.request import urlopen

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from server.observe.metrics import Metrics

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


class Scrape:
    """One reading of all metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = parse(text)

    @classmethod
    def of(cls, metrics: Metrics) -> Scrape:
        return cls(generate_latest(metrics.registry).decode())

    @classmethod
    def at(cls, address: str) -> Scrape:
        with urlopen(f"http://{address}/metrics", timeout=10) as reply:
            return cls(reply.read().decode())

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples.get(("secateur_" + name, frozenset(labels.items())), 0.0)

    def labels(self, label: str) -> set[str]:
        return {value for _, labels in self.samples for key, value in labels if key == label}
