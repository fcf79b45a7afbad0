"""How long a running job still takes: the cost report's prices of its layers, corrected by what is measured."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.progress import Progress

__all__ = ["seconds_left"]


def seconds_left(
    layer_ms: Sequence[float], price_ms: float, ratio: float | None, elapsed_seconds: float, progress: Progress | None
) -> float:
    """Predicted seconds until the result.

    `layer_ms` are the report's prices of the layers and `ratio` what evaluations of this model took of them so far (None:
    never measured); `price_ms` stands for a model without a report. The further this evaluation is, the more its own
    pace counts.
    """
    elapsed_ms = elapsed_seconds * 1e3
    total = sum(layer_ms) if len(layer_ms) else price_ms / (ratio or 1.0)
    if progress is None or total <= 0:
        return max(0.0, price_ms - elapsed_ms) / 1e3
    if len(layer_ms) == progress.layers:
        done = sum(layer_ms[: progress.layer]) + progress.share * layer_ms[progress.layer]
    else:
        done = total * progress.done / progress.planned
    share = min(1.0, done / total)
    own = elapsed_ms / done if done > 0 else 1.0
    known = own if ratio is None else ratio
    return max(0.0, (total - done) * ((1 - share) * known + share * own)) / 1e3
