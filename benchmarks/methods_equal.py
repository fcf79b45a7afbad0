"""How many times as long as DiaGrid the other methods take at equal accuracy, in diagonal packing.

DiaGrid's latency at an accuracy lies on the line between those of its networks that no other of them beats in both.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from methods_grid import OURS

from secateur.sweep_run import DIAGONAL

__all__ = ["TARGET", "at_equal_accuracy", "render_equal"]

TARGET = 1.5
Record = dict[str, Any]
# What is compared, of the others and of DiaGrid: prices; measured runs; prices where no client gathers for the others.
_COMPARED = {
    "by price": ("predicted_ms", "predicted_ms"),
    "measured": ("measured_ms", "measured_ms"),
    "not gathered": ("ungathered_ms", "predicted_ms"),
}


def at_equal_accuracy(points: Sequence[Record]) -> list[Record]:
    """A row for each setting of every other method on the networks that DiaGrid was run on, means over seeds.

    `times` holds None where the method is more accurate than DiaGrid ever is, or where something was not measured. With
    `at_least` the method is less accurate than DiaGrid ever is, which is compared where it is fastest.
    """
    means = list(_means([p for p in points if p["made"]]))
    rows = []
    for mean in means:
        ours = [m for m in means if m["network"] == mean["network"] and m["method"] == OURS]
        if mean["method"] == OURS or not ours:
            continue
        lowest = min(m["accuracy"] for m in ours)
        times = {what: _times(mean, ours, *keys) for what, keys in _COMPARED.items()}
        rows.append(mean | {"times": times, "at_least": mean["accuracy"] < lowest})
    return rows


def _means(points: Sequence[Record]) -> Iterator[Record]:
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for point in points:
        groups.setdefault((point["network"], point["row"], point["setting"]), []).append(point)
    for (network, method, setting), group in groups.items():
        costs = [p["packings"][DIAGONAL] for p in group]
        values = {key: [c.get(key) for c in costs] for pair in _COMPARED.values() for key in pair}
        yield {"network": network, "method": method, "setting": setting} | {
            "accuracy": statistics.fmean(p["accuracy"] for p in group),
            **{key: None if None in found else statistics.fmean(found) for key, found in values.items()},
        }


def _times(other: Record, ours: Sequence[Record], theirs: str, own: str) -> float | None:
    if other[theirs] is None or any(m[own] is None for m in ours):
        return None
    ms = _at(other["accuracy"], [(m["accuracy"], m[own]) for m in ours])
    return None if ms is None else float(other[theirs] / ms)


def _at(accuracy: float, networks: Sequence[tuple[float, float]]) -> float | None:
    """Milliseconds at an accuracy, of (accuracy, milliseconds); None beyond the most accurate."""
    front = [(a, ms) for a, ms in sorted(networks) if not any(b >= a and other < ms for b, other in networks)]
    if accuracy <= front[0][0]:
        return front[0][1]
    for (low, fast), (high, slow) in pairwise(front):
        if accuracy <= high:
            return fast + (slow - fast) * (accuracy - low) / (high - low)
    return None


def render_equal(rows: Sequence[Record]) -> None:
    """A table for a person, and how often the target was met."""
    if not rows:
        return
    print(f"\ntimes DiaGrid's latency at equal accuracy, diagonal packing; asked {TARGET}")
    print(f"{'network':12}{'method':24}{'setting':20}{'accuracy':>9}" + "".join(f"{what:>15}" for what in _COMPARED))
    for row in rows:
        cells = (_cell(row["times"][what], row["at_least"]) for what in _COMPARED)
        print(
            f"{row['network']:12}{row['method']:24}{row['setting']:20}{row['accuracy']:>9.2%}"
            + "".join(f"{cell:>15}" for cell in cells)
        )
    for what in _COMPARED:
        known = [(row["times"][what], row["at_least"]) for row in rows if row["times"][what] is not None]
        met = sum(times >= TARGET for times, _ in known)
        missed = sum(times < TARGET and not at_least for times, at_least in known)
        print(f"{what}: met at {met} points, missed at {missed}, {len(rows) - met - missed} cannot be compared")
    print("-: more accurate than DiaGrid's most accurate network, or not measured; >: less accurate than its least")


def _cell(times: float | None, at_least: bool) -> str:
    return "-" if times is None else f"{'> ' if at_least else ''}{times:.2f}"
