"""price(plan, table): latency, bytes and memory of a plan, before any ciphertext exists and without an HE library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..gadget import Gadget
from ..params import CkksParams
from ..plan import Plan
from ..plan.counts import layer_counts, leaf_totals, products, rotations
from ..wire import ciphertexts_byte_size, key_set_byte_size
from .environment import Environment
from .formulas import wide_share
from .keys import KeyCost, key_costs
from .memory import layer_plaintext_bytes, memory
from .table import CostTable

__all__ = ["CostReport", "LayerCost", "price"]

# A table of another machine: the true latency is expected within half a decade either way.
_DOUBTFUL_FACTOR = 10**0.5


class _Counted:
    """What has counts by leaf, whatever stages a back end makes of a rotation or a product."""

    counts: Mapping[str, int]

    @property
    def rotations(self) -> int:
        return rotations(self.counts)

    @property
    def products(self) -> int:
        """With plaintexts."""
        return products(self.counts)


@dataclass(frozen=True)
class LayerCost(_Counted):
    """Predicted milliseconds and planned leaves of one layer, the levels before and left after it, and its operands' bytes."""

    name: str
    ms: float
    low_ms: float
    high_ms: float
    counts: Mapping[str, int]
    level: int
    levels_left: int
    plaintext_bytes: int


@dataclass(frozen=True)
class CostReport(_Counted):
    """What one encrypted inference costs.

    `latency_ms` is one `Executor.run` on loaded keys: `upload_ms`, every operation, `download_ms`; `low_ms` and
    `high_ms` follow from the table's spreads, all moving together, or are half a decade away where the table is not of
    here and now: then `warnings` says why. Bytes are exact sizes on the wire: a seeded input, a full output, seeded keys.
    `peak_bytes` estimates the memory of a worker: operands, before and after encoding, keys as loaded, ciphertexts, and
    the library's tables. `levels` are consumed, `levels_left` remain in the output. `sigma` is the predicted standard
    deviation per output element, `error_bound` what errors are expected to stay below (he_runtime/error_bound.py).
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    upload_ms: float
    download_ms: float
    layers: tuple[LayerCost, ...]
    counts: Mapping[str, int]
    levels: int
    levels_left: int
    upload_bytes: int
    download_bytes: int
    key_bytes: int
    keys: tuple[KeyCost, ...]
    plaintext_bytes: int
    vector_bytes: int
    loaded_key_bytes: int
    ciphertext_bytes: int
    table_bytes: int
    peak_bytes: int
    sigma: float
    error_bound: float
    table: str
    table_kind: str
    confidence: str
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for json.dumps."""
        return asdict(self)


def price(plan: Plan, table: CostTable, environment: Environment | None = None) -> CostReport:
    """Walk the planned counts; PlanError when the table lacks a leaf that the plan uses.

    A table that was not measured here and lately (`environment`, by default this machine and now) is used, and named.
    """
    doubts = table.doubts(environment)
    sums = _Sum(table, plan, doubtful=bool(doubts) or table.kind == "shipped")
    layers = _layers(plan, sums)
    inputs, outputs = _levels(plan, plan.inputs), _levels(plan, plan.outputs)
    upload = sums.add((("upload", level), 1) for level in inputs)
    download = sums.add((("download", level), 1) for level in outputs)
    held = memory(plan, table.backend)
    return CostReport(
        latency_ms=sums.total.ms,
        low_ms=sums.total.low_ms,
        high_ms=sums.total.high_ms,
        upload_ms=upload.ms,
        download_ms=download.ms,
        layers=layers,
        counts=leaf_totals(plan.counts_on(table.backend)),
        levels=max(v.level for v in plan.values) - min(v.level for v in plan.values),
        levels_left=min(outputs),
        upload_bytes=_wire_bytes(plan, plan.inputs, seeded=True),
        download_bytes=_wire_bytes(plan, plan.outputs, seeded=False),
        key_bytes=key_set_byte_size(plan.keys, plan.params, seeded=True),
        keys=key_costs(plan),
        plaintext_bytes=held.plaintexts,
        vector_bytes=held.vectors,
        loaded_key_bytes=held.keys,
        ciphertext_bytes=held.ciphertexts,
        table_bytes=held.tables,
        peak_bytes=held.total,
        sigma=plan.sigma,
        error_bound=plan.error_bound,
        table=table.name,
        table_kind=table.kind,
        confidence=_confidence(table, doubts),
        warnings=table.warnings(environment),
    )


def _confidence(table: CostTable, doubts: tuple[str, ...]) -> str:
    if table.kind == "measured" and not doubts:
        return "calibrated on this machine"
    return "order of magnitude" + "".join(f", {doubt}" for doubt in doubts)


@dataclass(frozen=True)
class _Span:
    """Milliseconds, with both ends of the error bar."""

    ms: float = 0.0
    low_ms: float = 0.0
    high_ms: float = 0.0

    def __add__(self, other: _Span) -> _Span:
        return _Span(self.ms + other.ms, self.low_ms + other.low_ms, self.high_ms + other.high_ms)


class _Sum:
    """Prices of counts, and their total so far."""

    def __init__(self, table: CostTable, plan: Plan, doubtful: bool) -> None:
        self._table, self._degree, self._doubtful = table, plan.params.degree, doubtful
        self._shape = Gadget.parse(plan.gadget).alpha, len(plan.params.special)
        self.backend = table.backend
        self._wide = [wide_share(rows) for rows in _rows(plan.params)]
        self.total = _Span()

    def add(self, counts: Iterable[tuple[tuple[str, int], int]]) -> _Span:
        span = _Span()
        for (leaf, level), n in counts:
            entry = self._table.lookup(leaf, self._degree, level, self._shape, self._wide[level])
            ms = n * entry.seconds * 1e3
            if self._doubtful:
                span += _Span(ms, ms / _DOUBTFUL_FACTOR, ms * _DOUBTFUL_FACTOR)
            else:
                span += _Span(ms, ms * max(0.0, 1 - entry.spread), ms * (1 + entry.spread))
        self.total += span
        return span


def _rows(params: CkksParams) -> Iterator[tuple[int, ...]]:
    """The primes of an operation at each level, from 0."""
    for level in range(len(params.primes)):
        yield (*params.primes[: level + 1], *params.special)


def _layers(plan: Plan, sums: _Sum) -> tuple[LayerCost, ...]:
    operands = layer_plaintext_bytes(plan, sums.backend)
    found = []
    for name, counts in layer_counts(plan, sums.backend).items():
        ops = [op for op in plan.ops if op.layer == name]
        span = sums.add(counts.items())
        found.append(
            LayerCost(
                name=name,
                ms=span.ms,
                low_ms=span.low_ms,
                high_ms=span.high_ms,
                counts=leaf_totals(counts),
                level=max(plan.values[v].level for op in ops for v in op.inputs),
                levels_left=plan.values[ops[-1].outputs[-1]].level,
                plaintext_bytes=operands[name],
            )
        )
    return tuple(found)


def _levels(plan: Plan, ports: Iterable[Any]) -> list[int]:
    return [plan.values[v].level for port in ports for v in port.values]


def _wire_bytes(plan: Plan, ports: Iterable[Any], *, seeded: bool) -> int:
    """One object per port."""
    total = 0
    for port in ports:
        value = plan.values[port.values[0]]
        total += ciphertexts_byte_size(len(port.values), value.level, plan.params, polys=value.size, seeded=seeded)
    return total
