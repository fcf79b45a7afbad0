"""price(plan, table): latency, bytes and memory of a plan, before any ciphertext exists and without an HE library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..plan import Kind, Op, Plan
from ..plan.counts import layer_counts, leaf_totals
from ..wire import ciphertexts_byte_size, key_set_byte_size
from .table import CostTable

__all__ = ["CostReport", "LayerCost", "price"]

# A table of another machine: the true latency is expected within half a decade either way.
_SHIPPED_FACTOR = 10**0.5


@dataclass(frozen=True)
class LayerCost:
    """Predicted milliseconds and planned leaves of one layer."""

    name: str
    ms: float
    counts: Mapping[str, int]


@dataclass(frozen=True)
class CostReport:
    """What one encrypted inference costs.

    `latency_ms` is one `Executor.run` on loaded keys: `upload_ms`, every operation, `download_ms`; `low_ms` and
    `high_ms` follow from the table's spreads, all moving together. Bytes are exact sizes on the wire: a seeded
    input, a full output, seeded keys. `peak_bytes` estimates the evaluator's memory: keys as loaded, plaintexts and
    the largest set of live ciphertexts. `sigma` is the predicted standard deviation per output element.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    upload_ms: float
    download_ms: float
    layers: tuple[LayerCost, ...]
    counts: Mapping[str, int]
    levels: int
    upload_bytes: int
    download_bytes: int
    key_bytes: int
    plaintext_bytes: int
    peak_bytes: int
    sigma: float
    table: str
    table_kind: str
    confidence: str

    def to_json(self) -> dict[str, Any]:
        """Plain data for json.dumps."""
        return asdict(self)


def price(plan: Plan, table: CostTable) -> CostReport:
    """Walk the planned counts; PlanError when the table lacks a leaf that the plan uses."""
    bounds = _Sum(table, plan.params.degree)
    layers = tuple(
        LayerCost(name, bounds.add(counts.items()) * 1e3, leaf_totals(counts))
        for name, counts in layer_counts(plan).items()
    )
    inputs, outputs = _levels(plan, plan.inputs), _levels(plan, plan.outputs)
    upload = bounds.add((("upload", level), 1) for level in inputs)
    download = bounds.add((("download", level), 1) for level in outputs)
    shipped = table.kind == "shipped"
    return CostReport(
        latency_ms=bounds.seconds * 1e3,
        low_ms=(bounds.seconds / _SHIPPED_FACTOR if shipped else bounds.low) * 1e3,
        high_ms=(bounds.seconds * _SHIPPED_FACTOR if shipped else bounds.high) * 1e3,
        upload_ms=upload * 1e3,
        download_ms=download * 1e3,
        layers=layers,
        counts=leaf_totals(plan.counts),
        levels=max(v.level for v in plan.values) - min(v.level for v in plan.values),
        upload_bytes=_wire_bytes(plan, plan.inputs, seeded=True),
        download_bytes=_wire_bytes(plan, plan.outputs, seeded=False),
        key_bytes=key_set_byte_size(plan.keys, plan.params, seeded=True),
        plaintext_bytes=_plaintext_bytes(plan),
        peak_bytes=_plaintext_bytes(plan) + _loaded_key_bytes(plan) + _live_bytes(plan),
        sigma=plan.sigma,
        table=table.name,
        table_kind=table.kind,
        confidence="order of magnitude" if shipped else "calibrated on this machine",
    )


class _Sum:
    """Seconds so far, with both ends of the error bar."""

    def __init__(self, table: CostTable, degree: int) -> None:
        self._table, self._degree = table, degree
        self.seconds = self.low = self.high = 0.0

    def add(self, counts: Iterable[tuple[tuple[str, int], int]]) -> float:
        total = 0.0
        for (leaf, level), n in counts:
            entry = self._table.lookup(leaf, self._degree, level)
            total += n * entry.seconds
            self.low += n * entry.seconds * max(0.0, 1 - entry.spread)
            self.high += n * entry.seconds * (1 + entry.spread)
        self.seconds += total
        return total


def _levels(plan: Plan, ports: Iterable[Any]) -> list[int]:
    return [plan.values[v].level for port in ports for v in port.values]


def _wire_bytes(plan: Plan, ports: Iterable[Any], *, seeded: bool) -> int:
    """One object per port."""
    total = 0
    for port in ports:
        value = plan.values[port.values[0]]
        total += ciphertexts_byte_size(len(port.values), value.level, plan.params, polys=value.size, seeded=seeded)
    return total


def _plaintext_bytes(plan: Plan) -> int:
    return sum((plain.level + 1) * plan.params.degree * 8 for plain in plan.plaintexts)


def _loaded_key_bytes(plan: Plan) -> int:
    """SEAL keeps every key padded to the full chain."""
    primes = len(plan.params.primes)
    return len(plan.keys.requests) * 2 * primes * (primes + 1) * plan.params.degree * 8


def _live_bytes(plan: Plan) -> int:
    """Largest sum of live ciphertexts; a transform also holds its rotated inputs and one sum per giant step."""

    def size(value: int) -> int:
        kind = plan.values[value]
        return kind.size * (kind.level + 1) * plan.params.degree * 8

    live = {v for port in plan.inputs for v in port.values}
    held = peak = sum(map(size, live))
    for index, op in enumerate(plan.ops):
        held += sum(map(size, op.outputs))
        live.update(op.outputs)
        peak = max(peak, held + _transform_extra(op) * size(op.inputs[0]))
        for value in set(op.inputs):
            if plan.last_use[value] == index and value in live:
                live.remove(value)
                held -= size(value)
    return peak


def _transform_extra(op: Op) -> int:
    return len(op.babies) + len(op.groups) if op.kind is Kind.LINEAR_TRANSFORM else 0
