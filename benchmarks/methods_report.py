"""The points of `methods.py` as people read them: one table, the correlations, and one picture."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from methods_grid import DENSE

from secateur.sweep_run import COLUMN, DIAGONAL, spearman

__all__ = ["render", "summary", "write_plot"]

TARGETS = {"planner_spearman": 0.95}
Record = dict[str, Any]
_PREDICTORS = ("predicted_ms", "calibrated_ms", "flops")
_MARKERS = "osD^v<>PX*hpd8"
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#000000", "#999933")  # Okabe and Ito's


def summary(points: Sequence[Record]) -> Record:
    """One row per network, method and setting over its seeds, what could not be made, and the rank correlations."""
    made = [p for p in points if p["made"]]
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for point in made:
        groups.setdefault((point["network"], point["row"], point["setting"]), []).append(point)
    rows = [_row(*key, group) for key, group in groups.items()]
    dense = {row["network"]: row for row in rows if row["method"] == DENSE}
    for row in rows:
        _compare(row, dense.get(row["network"]))
    return {
        "rows": rows,
        "losses": [row for row in rows if row["verdicts"]],
        "failed": [{k: p[k] for k in ("network", "row", "setting", "seed", "why")} for p in points if not p["made"]],
        "left_out": _left_out(made),
        "correlations": {
            "best packing": correlations(made),
            DIAGONAL: correlations(made, DIAGONAL),
            COLUMN: correlations(made, COLUMN),
        },
        "targets": TARGETS,
    }


def _row(network: str, method: str, setting: str, group: Sequence[Record]) -> Record:
    """Means over seeds, and what the best packing of the structure costs per query."""
    packing = best_packing(group[0])
    costs = [cost for p in group if (cost := per_query(p, packing)) is not None]
    accuracies = [p["accuracy"] for p in group]
    row = {
        "network": network,
        "method": method,
        "setting": setting,
        "seeds": [p["seed"] for p in group],
        "accuracy": statistics.fmean(accuracies),
        "accuracies": accuracies,
        "packing": packing,
        **{key: statistics.fmean(p[key] for p in group) for key in ("nonzeros", "flops", "epochs", "wall_seconds")},
    }
    keys = ("levels", "upload_bytes", "key_bytes", "rotations", "products", "predicted_ms", "measured_ms")
    return row | {key: statistics.fmean(c[key] for c in costs) if costs else None for key in keys}


def best_packing(point: Record) -> str:
    """That of the method's structure, or the other where the network does not fit it."""
    named = point["packing"]
    other = COLUMN if named == DIAGONAL else DIAGONAL
    return str(named if per_query(point, named) is not None or per_query(point, other) is None else other)


def per_query(point: Record, packing: str) -> Record | None:
    """Counts of a run; bytes up and milliseconds by the query. None where that packing was not measured."""
    found = point["packings"][packing]
    if not found.get("measured_ms"):
        return None
    shared = ("upload_bytes", "predicted_ms", "measured_ms", "calibrated_ms")
    return {**found, **{key: found[key] / found["batch"] for key in shared}}


def _compare(row: Record, dense: Record | None) -> None:
    """Points of accuracy lost against the dense network, and in words what a method did not win."""
    row["loss"] = None if dense is None else 100 * (dense["accuracy"] - row["accuracy"])
    row["verdicts"] = []
    if dense is None or row["method"] == DENSE:
        return
    if row["loss"] > 1:
        row["verdicts"].append(f"loses {row['loss']:.1f} points")
    same = row["packing"] == dense["packing"] and row["measured_ms"] and dense["measured_ms"]
    if same and row["measured_ms"] >= dense["measured_ms"]:
        row["verdicts"].append("no faster than dense")


def _left_out(points: Sequence[Record]) -> list[Record]:
    """Plans that were not made or not measured, each reason once per network and method."""
    found = {
        (p["network"], p["row"], packing): cost["why"]
        for p in points
        for packing, cost in p["packings"].items()
        if not cost.get("measured_ms")
    }
    return [{"network": n, "row": r, "packing": k, "why": why} for (n, r, k), why in found.items()]


def correlations(points: Sequence[Record], packing: str | None = None) -> Record:
    """Spearman of each predictor with the measured milliseconds of a query, over all points (and seeds).

    `predicted_ms` is the planner's price by the shipped table, `calibrated_ms` by operations timed in turn with the run,
    `flops` the multiply-adds left.
    """
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in _PREDICTORS}
    for point in points:
        cost = per_query(point, packing or best_packing(point))
        if cost is not None:
            for name in _PREDICTORS:
                pairs[name].append(((cost | {"flops": point["flops"]})[name], cost["measured_ms"]))
    ranks = {name: spearman(found) if len(found) > 1 else None for name, found in pairs.items()}
    return {"n": len(pairs["flops"])} | ranks


_COLUMNS = (
    ("network", 12), ("method", 17), ("setting", 19), ("accuracy", 9), ("loss", 6), ("non-zeros", 10), ("mult-adds", 11),
    ("epochs", 7), ("levels", 7), ("up kB", 9), ("keys MB", 8), ("packing", 9), ("rot", 6), ("prod", 7),
    ("planned ms", 11), ("measured ms", 12),
)  # fmt: skip


def render(record: Record) -> None:
    """The table, the correlations, and everything that did not go well."""
    print(
        f"{record['machine']}, {record['backend']}, one thread, median of {record['runs']} runs; {record['revision']}"
    )
    for network, budget in record["budgets"].items():
        print(
            f"{network}: {budget['epochs']} epochs for every method after {budget['teacher']} of the teacher and "
            f"{budget['quadratics']} of the quadratics; seeds {', '.join(map(str, budget['seeds']))}"
        )
    print("".join(f"{name:<{width}}" if k < 3 else f"{name:>{width}}" for k, (name, width) in enumerate(_COLUMNS)))
    for row in record["rows"]:
        cells = _cells(row)
        print(
            "".join(
                f"{c:<{w}}" if k < 3 else f"{c:>{w}}" for k, (c, (_, w)) in enumerate(zip(cells, _COLUMNS, strict=True))
            )
        )
    print("milliseconds and kB are of one query: column packing serves a query per slot in every run")
    for name, found in record["correlations"].items():
        ranks = ", ".join(f"{key} {found[key]:.3f}" for key in _PREDICTORS if found[key] is not None)
        if ranks:
            print(f"rank correlation with measured latency, {name}, {found['n']} networks: {ranks}")
    for row in record["losses"]:
        print(f"LOSS {row['network']}, {row['method']}, {row['setting']}: {'; '.join(row['verdicts'])}")
    for point in record["failed"]:
        print(f"FAILED {point['network']}, {point['row']}, {point['setting']}, seed {point['seed']}: {point['why']}")
    for row in record["left_out"]:
        print(f"left out: {row['network']}, {row['row']}, {row['packing']} packing: {row['why']}")
    for what in ("not registered", "not compared"):
        if record[what]:
            print(f"{what}: {', '.join(record[what])}")
    if record["plot"]:
        print(f"wrote {record['plot']}")


def _cells(row: Record) -> list[str]:
    def number(key: str, form: str, scale: float = 1.0) -> str:
        return "" if row[key] is None else format(row[key] / scale, form)

    return [
        row["network"], row["method"], row["setting"], f"{row['accuracy']:.2%}", number("loss", "+.2f"),
        number("nonzeros", ",.0f"), number("flops", ",.0f"), number("epochs", ".0f"), number("levels", ".0f"),
        number("upload_bytes", ",.1f", 1e3), number("key_bytes", ",.1f", 1e6), row["packing"],
        number("rotations", ",.0f"), number("products", ",.0f"), number("predicted_ms", ".4g"),
        number("measured_ms", ".4g"),
    ]  # fmt: skip


def write_plot(points: Sequence[Record], path: Path) -> str | None:
    """Accuracy against measured latency of a query, one panel per network and packing that was measured; None without matplotlib.

    Filled markers stand in the packing that is best for the method's structure.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        print("wrote no picture: matplotlib is not installed; try pip install 'secateur[plot]'", file=sys.stderr)
        return None
    made = [p for p in points if p["made"]]
    networks = list(dict.fromkeys(p["network"] for p in made))
    if not networks:
        return None
    packings = [k for k in (DIAGONAL, COLUMN) if any(per_query(p, k) for p in made)] or [DIAGONAL]
    figure = Figure(figsize=(5.2 * len(networks) + 2.2, 4.2 * len(packings)), layout="constrained")
    axes = figure.subplots(len(packings), len(networks), squeeze=False)
    methods = list(dict.fromkeys(p["row"] for p in made))
    for column, network in enumerate(networks):
        for line, packing in enumerate(packings):
            _panel(axes[line][column], [p for p in made if p["network"] == network], packing, methods)
            axes[line][column].set(title=f"{network}, {packing} packing", xlabel="measured milliseconds per query")
    for line in axes:
        line[0].set(ylabel="test accuracy (%), mean of seeds")
    known = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    ordered = [m for m in methods if m in known]
    figure.legend([known[m] for m in ordered], ordered, loc="outside right center", title="filled: its own packing")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return str(path)


def _panel(axis: Any, points: Sequence[Record], packing: str, methods: Sequence[str]) -> None:
    """One dot per setting, at the mean accuracy and the median latency of its seeds; a line through each method's."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for k, method in enumerate(methods):
        dots: dict[str, list[tuple[float, float]]] = {}
        own = False
        for point in points:
            cost = per_query(point, packing)
            if point["row"] == method and cost is not None:
                dots.setdefault(point["setting"], []).append((cost["measured_ms"], 100 * point["accuracy"]))
                own = best_packing(point) == packing
        if not dots:
            continue
        drawn = sorted((statistics.median(x for x, _ in d), statistics.fmean(y for _, y in d)) for d in dots.values())
        color = _COLORS[k % len(_COLORS)]
        axis.plot(
            [x for x, _ in drawn], [y for _, y in drawn], label=method, color=color, marker=_MARKERS[k % len(_MARKERS)],
            markersize=11 if method == DENSE else 7, markerfacecolor=color if own else "none", linewidth=0.8, alpha=0.9,
        )  # fmt: skip
    if not axis.lines:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", va="center", color="gray")
        axis.set(xticks=[], yticks=[])
        return
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(0.12)
    axis.grid(alpha=0.25, which="both")
