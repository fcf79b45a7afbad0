"""A plan as one HTML page: what it costs and where, its levels as a staircase, its rotations, its keys, its memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from . import page

if TYPE_CHECKING:
    from he_runtime import Plan
    from he_runtime.cost import CostReport

__all__ = ["plan_page"]

_SHOWN_KEYS = 12  # more are folded away


@dataclass(frozen=True)
class _Layer:
    """One layer's part of the plan: levels before and after it, where its rotations come from, and its price."""

    name: str
    kind: str
    layout: str
    level_in: int
    level_out: int
    babies: int
    giants: int
    folds: int
    products: int
    ms: float
    share: float


def plan_page(plan: Plan, report: CostReport) -> str:
    """One self-contained page; `report` is the plan's price."""
    layers = _layers(plan, report)
    return page.document(
        f"Plan of {plan.model_name}",
        f"N={plan.params.degree}, {len(plan.params.primes)} primes, 128-bit security; plan {plan.digest[:16]}",
        [
            page.section("What it costs", page.facts(_facts(plan, report))),
            page.section("Cost by layer", _bars(layers, report)),
            page.section(
                "Levels",
                "<p>A step down is one rescale: one prime less, and every later operation is cheaper.</p>",
                _staircase(layers),
            ),
            page.section("Layers", _layer_table(layers)),
            page.section(f"Keys ({len(report.keys)})", _keys(report)),
            page.section("Memory", _memory(report)),
        ],
    )


def _layers(plan: Plan, report: CostReport) -> list[_Layer]:
    from he_runtime.plan import Kind
    from he_runtime.plan.counts import products

    info = {layer.name: layer for layer in plan.layers}
    found = []
    for cost in report.layers:
        ops = [op for op in plan.ops if op.layer == cost.name]
        known = info.get(cost.name)
        found.append(
            _Layer(
                name=cost.name,
                kind=known.kind if known else "",
                layout=known.layout if known else "",
                level_in=cost.level,
                level_out=cost.levels_left,
                babies=sum(len(op.babies) for op in ops if op.cells is not None),
                giants=sum(sum(1 for _, step in op.groups if step) for op in ops if op.cells is not None),
                folds=sum(op.kind is Kind.ROTATE for op in ops),
                products=products(cost.counts),
                ms=cost.ms,
                share=cost.ms / report.latency_ms if report.latency_ms else 0.0,
            )
        )
    return found


def _facts(plan: Plan, report: CostReport) -> list[tuple[str, str]]:
    params, batch = plan.params, plan.batch
    bits = " + ".join(f"{math.log2(q):.1f}" for q in params.primes)
    special = " + ".join(f"{math.log2(q):.1f}" for q in params.special)
    each = f", {report.latency_ms / batch:.3g} ms each for {batch:,} queries a run" if batch > 1 else ""
    return [
        ("latency", f"{report.latency_ms:,.0f} ms{each} ({report.low_ms:,.0f} to {report.high_ms:,.0f}, {report.confidence})"),
        ("cost table", report.table),
        *(("beware", warning) for warning in report.warnings),
        ("parameters", f"N={params.degree}, log2(QP)={params.log2_qp:.1f}: primes {bits} bits, special {special} bits"),
        ("rotations", f"{report.rotations:,}"),
        ("plaintext products", f"{report.products:,}"),
        ("ciphertext products", f"{report.counts.get('mul', 0) + report.counts.get('square', 0):,}"),
        ("levels", f"{report.levels} used, {report.levels_left} left"),
        ("keys, uploaded once", f"{len(report.keys)}, {_megabytes(report.key_bytes)}"),
        ("a query", f"{_megabytes(report.upload_bytes)} up, {_megabytes(report.download_bytes)} down"),
        ("memory of the server", f"{_megabytes(report.peak_bytes)} at the peak"),
        ("error bound", f"{report.error_bound:.3g} on any output"),
    ]  # fmt: skip


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def _bars(layers: list[_Layer], report: CostReport) -> str:
    """A bar per layer, as long as its share of the latency; the border last."""
    border = report.upload_ms + report.download_ms
    rows = [(layer.name, layer.ms, layer.share) for layer in layers]
    rows.append(("in and out", border, border / report.latency_ms if report.latency_ms else 0.0))
    longest = max(share for _, _, share in rows) or 1.0
    height, left, width = 24, 150, 420
    parts = [f'<svg viewBox="0 0 760 {height * len(rows) + 6}" width="760" role="img" aria-label="cost by layer">']
    for k, (name, ms, share) in enumerate(rows):
        y, length = 4 + k * height, width * share / longest
        parts.append(f'<text x="{left - 10}" y="{y + 14}" text-anchor="end">{escape(_short(name, 22))}</text>')
        parts.append(
            f'<rect class="bar" x="{left}" y="{y + 2}" width="{length:.1f}" height="{height - 7}" rx="2" fill="#0072b2"/>'
        )
        parts.append(f'<text x="{left + length + 8:.1f}" y="{y + 14}">{share:.1%}, {ms:,.1f} ms</text>')
    return "\n".join([*parts, "</svg>"])


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _staircase(layers: list[_Layer]) -> str:
    """Levels from left to right in the order of evaluation, with each layer's name under its tread."""
    tread, left, top, rise = 96, 46, 16, 46
    highest = max(layer.level_in for layer in layers)
    floor = top + rise * (highest + 0.6)
    width, height = left + tread * len(layers) + 20, floor + 62

    def y(level: int) -> float:
        return top + rise * (highest - level) + 6

    parts = [f'<svg viewBox="0 0 {width} {height:.0f}" width="{width}" role="img" aria-label="levels by layer">']
    for level in range(highest + 1):
        parts.append(
            f'<line x1="{left}" x2="{width - 10}" y1="{y(level):.1f}" y2="{y(level):.1f}" stroke="currentColor" stroke-opacity="0.2"/>'
            f'<text x="{left - 8}" y="{y(level) + 4:.1f}" text-anchor="end">{level}</text>'
        )
    corners: list[tuple[float, float]] = []
    for k, layer in enumerate(layers):
        x = left + tread * k
        corners += [(x, y(layer.level_in)), (x + tread, y(layer.level_in)), (x + tread, y(layer.level_out))]
        middle = x + tread / 2
        parts.append(
            f'<text x="{middle}" y="{floor + 18:.1f}" text-anchor="middle">{escape(_short(layer.name, 13))}</text>'
            f'<text x="{middle}" y="{floor + 36:.1f}" text-anchor="middle" fill-opacity="0.6">{layer.share:.0%} of time</text>'
        )
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    parts.append(f'<polyline points="{points}" fill="none" stroke="#0072b2" stroke-width="3"/>')
    parts.append(f'<text x="{left - 8}" y="{floor + 18:.1f}" text-anchor="end">level</text>')
    return '<div class="scroll">' + "\n".join([*parts, "</svg>"]) + "</div>"


def _layer_table(layers: list[_Layer]) -> str:
    columns = ("layer", "kind", "layout", "level", "rotations", "baby", "giant", "fold", "products", "ms", "share")
    rows = [
        (
            x.name, x.kind, x.layout, f"{x.level_in} to {x.level_out}" if x.level_out != x.level_in else str(x.level_in),
            f"{x.babies + x.giants + x.folds:,}", f"{x.babies:,}", f"{x.giants:,}", f"{x.folds:,}", f"{x.products:,}",
            f"{x.ms:,.1f}", f"{x.share:.1%}",
        )
        for x in layers
    ]  # fmt: skip
    return page.table(columns, rows, text_columns=3)


def _keys(report: CostReport) -> str:
    """Every key, the busiest first."""
    rows = []
    for key in report.keys:
        times = ", ".join(f"{name} {n}" for name, n in key.uses.items())
        rows.append((key.name, times, str(sum(key.uses.values())), str(key.level), _megabytes(key.bytes)))
    columns = ("key", "used by", "times", "level", "upload")
    if not rows:
        return "<p>None: no rotation, and no product of ciphertexts.</p>"
    shown = page.table(columns, rows[:_SHOWN_KEYS], text_columns=2)
    rest = rows[_SHOWN_KEYS:]
    return shown + (
        f"<details><summary>{len(rest)} more</summary>{page.table(columns, rest, 2)}</details>" if rest else ""
    )


def _memory(report: CostReport) -> str:
    rows = [
        ("encoded weights, shared by all clients", _megabytes(report.plaintext_bytes)),
        ("weights before encoding", _megabytes(report.vector_bytes)),
        ("tables of the library", _megabytes(report.table_bytes)),
        ("one client's keys", _megabytes(report.loaded_key_bytes)),
        ("ciphertexts of one query", _megabytes(report.ciphertext_bytes)),
        ("together, at the peak", _megabytes(report.peak_bytes)),
    ]
    return page.table(("", "memory"), rows)
