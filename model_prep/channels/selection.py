"""Which channels stay: one ranking over all layers, with a part of every layer kept (EHAP, arXiv 2306.07030)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from he_runtime.errors import ModelError

from ..masks import Bools

__all__ = ["LAYER_LIMIT", "select_channels"]

Floats = npt.NDArray[np.float64]
LAYER_LIMIT = 0.95  # prune_ratio_limit of HAP


def select_channels(
    scores: Mapping[str, Floats],
    ratio: float,
    *,
    limit: float = LAYER_LIMIT,
    removable: Mapping[str, Bools] | None = None,
) -> dict[str, Bools]:
    """Which output channels (channels,) of each layer stay, from their scores (channels,), higher is better.

    Exactly int(ratio * n) of the n removable channels of all layers go, the lowest scores first; ties keep the lower
    index, in the order of `scores`. Of every layer the ceil((1 - limit) * channels) best stay, at least the best one,
    and what that saves is taken from the other layers. `removable` is what slimming.removable() says; without it every
    channel of every layer named in `scores` may go.

    Raises ModelError where the ratio cannot be met, with the largest that can, and where a score is not finite.
    """
    _check(scores, ratio, limit)
    may_go = {key: np.ones(len(s), dtype=bool) if removable is None else removable[key] for key, s in scores.items()}
    must_stay = {key: ~may_go[key] | _best(s, limit) for key, s in scores.items()}
    names, starts = list(scores), np.cumsum([0, *(len(s) for s in scores.values())])
    pool = np.concatenate([scores[key] for key in names])
    free = ~np.concatenate([must_stay[key] for key in names])
    total = sum(int(m.sum()) for m in may_go.values())
    count = int(ratio * total)
    if count > free.sum():
        raise ModelError(
            f"cannot remove {ratio:.4g} of {total} channels: got {count} to remove, need at most {free.sum()} as every "
            f"layer keeps {1 - limit:.4g} of its channels and at least one; try a ratio of {_floor(free.sum(), total)}"
        )
    # Among equal scores the last goes first, so that the lower index stays.
    order = np.lexsort((-np.arange(len(pool)), pool))
    keep = np.ones(len(pool), dtype=bool)
    keep[order[free[order]][:count]] = False
    return {key: keep[start:end] for key, start, end in zip(names, starts[:-1], starts[1:], strict=True)}


def _check(scores: Mapping[str, Floats], ratio: float, limit: float) -> None:
    if not scores:
        raise ModelError("cannot select channels: got no scores, need those of at least one layer")
    if not 0 <= ratio < 1 or not 0 <= limit <= 1:
        raise ModelError(
            f"cannot select channels: got ratio {ratio} and limit {limit}, need 0 <= ratio < 1 and 0 <= limit <= 1"
        )
    wrong = [key for key, s in scores.items() if s.ndim != 1 or not len(s) or not np.isfinite(s).all()]
    if wrong:
        raise ModelError(f"cannot select channels of {wrong}: need one finite score per channel; try other scores")


def _best(scores: Floats, limit: float) -> Bools:
    """The channels that a layer keeps in any case."""
    least = max(1, math.ceil(round((1 - limit) * len(scores), 9)))
    keep = np.zeros(len(scores), dtype=bool)
    keep[np.argsort(-scores, kind="stable")[:least]] = True
    return keep


def _floor(part: int, whole: int) -> float:
    """The largest ratio of four digits that asks for no more than `part`."""
    return math.floor(1e4 * part / whole) / 1e4 if whole else 0.0
