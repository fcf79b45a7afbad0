"""A line chart as inline SVG: measured values as dots on a line, predicted ones as a dashed line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["COLORS", "NAMES", "Series", "legend", "line_chart"]

# Okabe and Ito's palette, which readers with any colour vision can tell apart.
COLORS = {"unstructured": "#d55e00", "diagonals": "#e69f00", "grid": "#0072b2", "permuted-grid": "#009e73"}
NAMES = {
    "unstructured": "unstructured",
    "diagonals": "random diagonals",
    "grid": "grid of diagonals",
    "permuted-grid": "grid, neurons permuted",
}
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 14, 44
_HOLLOW = ("permuted-grid",)  # the same cost as a plain grid: a ring around its dot

Pairs = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One pattern's curves: (sparsity, value) pairs in ascending sparsity; either may be empty."""

    pattern: str
    predicted: Pairs
    measured: Pairs


def line_chart(series: Sequence[Series], y_label: str, width: int = 520, height: int = 330) -> str:
    """Curves over sparsity from 0 to 100 %, the vertical axis from zero."""
    top = max((y for s in series for _, y in (*s.predicted, *s.measured)), default=1.0)
    step = _tick(top)
    frame = _Frame(width, height, step * math.ceil(top / step))
    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(y_label)}">']
    parts += [frame.rule(k * step) for k in range(round(frame.top / step) + 1)]
    parts += [
        f'<text x="{frame.x(p / 100):.1f}" y="{height - 24}" text-anchor="middle">{p}</text>' for p in range(0, 101, 20)
    ]
    parts.append(f'<text x="{frame.x(0.5):.1f}" y="{height - 6}" text-anchor="middle">sparsity (%)</text>')
    parts.append(
        f'<text transform="translate(13 {height / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    for one in series:
        parts += _curves(frame, one)
    return "\n".join([*parts, "</svg>"])


@dataclass(frozen=True)
class _Frame:
    width: int
    height: int
    top: float

    def x(self, sparsity: float) -> float:
        return _LEFT + sparsity * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return self.height - _BOTTOM - value / self.top * (self.height - _TOP - _BOTTOM)

    def path(self, pairs: Pairs) -> str:
        return " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in pairs)

    def rule(self, value: float) -> str:
        """A horizontal line with its number."""
        y = self.y(value)
        opacity = 0.2 if value else 1
        return (
            f'<line stroke="currentColor" stroke-opacity="{opacity}" x1="{_LEFT}" x2="{self.width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
        )


def _curves(frame: _Frame, series: Series) -> list[str]:
    color, name = COLORS[series.pattern], NAMES[series.pattern]
    fill, radius = ("none", 5.5) if series.pattern in _HOLLOW else (color, 3.2)
    parts = []
    if series.predicted:
        parts.append(
            f'<polyline points="{frame.path(series.predicted)}" fill="none" stroke="{color}" stroke-width="1.6" '
            'stroke-dasharray="6 4"/>'
        )
    if series.measured:
        parts.append(
            f'<polyline points="{frame.path(series.measured)}" fill="none" stroke="{color}" stroke-width="1.2" opacity="0.55"/>'
        )
    for sparsity, value in series.measured:
        parts.append(
            f'<circle cx="{frame.x(sparsity):.1f}" cy="{frame.y(value):.1f}" r="{radius}" fill="{fill}" stroke="{color}" '
            f'stroke-width="1.4"><title>{escape(name)}, {sparsity:.0%}: {value:.4g}</title></circle>'
        )
    return parts


def legend(patterns: Sequence[str]) -> str:
    """Names beside their colours, and what the kinds of line mean."""
    items = [
        f'<span><svg width="16" height="12" viewBox="0 0 16 12"><circle cx="8" cy="6" r="4.5" stroke="{COLORS[p]}" '
        f'stroke-width="1.6" fill="{"none" if p in _HOLLOW else COLORS[p]}"/></svg> {escape(NAMES[p])}</span>'
        for p in patterns
    ]
    items.append('<span class="muted">dots: measured; dashed: predicted</span>')
    return f'<p class="row">{"".join(items)}</p>'


def _tick(top: float) -> float:
    """A round step that divides the axis into three to six parts."""
    rough = max(top, 1e-9) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return power * min((1, 2, 2.5, 5, 10), key=lambda m: abs(m * power - rough))
