"""A sweep as people read it: curves of a record, one HTML page, one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import page
from .sweep_chart import COLORS, NAMES, Series, legend, line_chart
from .sweep_run import DENSE

__all__ = ["COLUMNS", "cells", "curves", "sweep_page", "write_png"]


COLUMNS = (
    "packing", "pattern", "zeros %", "weights", "rotations", "products", "keys", "N", "predicted ms", "measured ms",
    "ratio",
)  # fmt: skip


def curves(record: dict[str, Any], packing: str, value: str | None = None) -> list[Series]:
    """One series per pattern in a packing, starting from the dense network that all share.

    Of latencies in milliseconds, or, given the name of a `value` of the points, of that alone.
    """
    points = [p for p in record["points"] if p["packing"] == packing and p["fits"]]

    def pairs(pattern: str, name: str) -> list[tuple[float, float]]:
        found = [p for p in points if p["pattern"] in (pattern, DENSE) and p.get(name) is not None]
        return sorted((p["sparsity"], p[name]) for p in found)

    if value is not None:
        return [Series(pattern, (), pairs(pattern, value)) for pattern in record["patterns"]]
    return [Series(p, pairs(p, "predicted_ms"), pairs(p, "measured_ms")) for p in record["patterns"]]


def cells(point: dict[str, Any]) -> tuple[str, ...]:
    """One point as a row of text."""
    start = (point["packing"], point["pattern"], f"{100 * point['sparsity']:.4g}")
    if not point["fits"]:
        return (*start, *([""] * (len(COLUMNS) - 4)), "does not fit")
    numbers = [f"{point[name]:,}" for name in ("nonzeros", "rotations", "products", "keys", "N")]
    measured = point.get("measured_ms")
    times = (
        f"{point['predicted_ms']:.1f}",
        f"{measured:.1f}" if measured else "",
        f"{point['ratio']:.3f}" if measured else "",
    )
    return (*start, *numbers, *times)


def _title(record: dict[str, Any], packing: str) -> str:
    batches = {p["batch"] for p in record["points"] if p["packing"] == packing and p["fits"]}
    queries = " or ".join("one query" if b == 1 else f"{b:,} queries" for b in sorted(batches))
    return f"{packing.capitalize()} packing: {queries} a run" if batches else f"{packing.capitalize()} packing"


def _facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    agreed = record["agreement"]
    libraries = ", ".join(f"{name} {version}" for name, version in record["libraries"].items())
    rows = [
        ("network", f"{record['network']}, weights {record['weights']}"),
        ("machine", f"{record['machine']}, one thread"),
        ("back end", f"{record['backend']} ({libraries})"),
        ("security", "128 bits"),
        ("date", record["date"]),
        ("seed", str(record["seed"])),
        ("prices", record["prices"]),
    ]
    if agreed["n"]:
        ranks = "" if agreed["spearman"] is None else f", Spearman {agreed['spearman']:.4f}"
        rows.append(("predicted against measured", f"{agreed['mape']:.1%} mean error over {agreed['n']} plans{ranks}"))
        rows.append(("runs", f"median of {record['runs']}, processor time"))
    return rows


def sweep_page(record: dict[str, Any]) -> str:
    """One self-contained page with the curves of every packing and every number behind them."""
    charts = []
    for packing in record["packings"]:
        chart = line_chart(curves(record, packing), "milliseconds a run")
        charts.append(f"<div><p><b>{_title(record, packing)}</b></p>{chart}</div>")
    first = record["packings"][0]
    energy = line_chart(curves(record, first, "kept_energy"), "share of squared weights kept")
    explained = (
        "<p>Every pattern keeps the same number of weights in every layer. Diagonal packing pays for rotations and for "
        "occupied diagonals, column packing for weights.</p>"
    )
    kept = (
        "<p>What a mask keeps before any training. Permuting neurons costs nothing and keeps more on the same grid.</p>"
    )
    return page.document(
        f"Latency against sparsity: {record['network']}",
        f"{record['backend']} on {record['machine']}, {record['date']}",
        [
            page.section("Latency", explained, legend(record["patterns"]), f'<div class="row">{"".join(charts)}</div>'),
            page.section("Energy", kept, energy),
            page.section("How", page.facts(_facts(record))),
            page.section("Every point", page.table(COLUMNS, [cells(p) for p in record["points"]], text_columns=2)),
        ],
    )


def write_png(record: dict[str, Any], path: Path) -> None:
    """The page's charts as one picture. ModuleNotFoundError without matplotlib."""
    from matplotlib.figure import Figure

    packings: Sequence[str] = record["packings"]
    figure = Figure(figsize=(6.2 * (len(packings) + 1), 4.6), layout="constrained")
    axes = figure.subplots(1, len(packings) + 1, squeeze=False)[0]
    for axis, packing in zip(axes, packings, strict=False):
        for series in curves(record, packing):
            _draw(axis, series)
        axis.set(title=_title(record, packing), ylabel="milliseconds a run")
    for series in curves(record, packings[0], "kept_energy"):
        _draw(axes[-1], series)
    axes[-1].set(title="What the masks keep, untrained", ylabel="share of squared weights kept")
    for axis in axes:
        axis.set(xlabel="sparsity (%)", xlim=(-2, 102))
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
    axes[0].legend(title="dots measured, dashed predicted", fontsize="small", title_fontsize="small")
    agreed = record["agreement"]
    note = f", mean error of predictions {agreed['mape']:.1%}" if agreed["n"] else ""
    figure.suptitle(f"{record['network']}: {record['backend']} on {record['machine']}{note}", fontsize="medium")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _draw(axis: Any, series: Series) -> None:
    color, name = COLORS[series.pattern], NAMES[series.pattern]
    hollow = series.pattern == "permuted-grid"
    if series.predicted:
        axis.plot(
            *_columns(series.predicted),
            color=color,
            linestyle="--",
            linewidth=1.4,
            label=None if series.measured else name,
        )
    if series.measured:
        face = "none" if hollow else color
        size = 9 if hollow else 5
        axis.plot(
            *_columns(series.measured), color=color, marker="o", markersize=size, markerfacecolor=face, linewidth=0.8, label=name
        )  # fmt: skip


def _columns(pairs: Any) -> tuple[list[float], list[float]]:
    return [100 * a for a, _ in pairs], [b for _, b in pairs]
