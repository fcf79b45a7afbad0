"""Weights onto levels, a growing share at a time.

Each step fits the levels, puts the weights nearest to theirs onto them for good and trains the rest, which makes up for
what rounding changed. Yuan et al., arXiv 1908.11691 (masked mapping); Ye et al., arXiv 1903.09769 (progressive
quantization).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from ..masks import Bools
from ..settings import Training
from ..trainable import TrainableGraph
from .session import (
    Floats,
    Penalty,
    Projection,
    Session,
    arrays,
    core_hooks,
    masks_of,
    need,
    need_arrays,
    relative_distance,
    set_arrays,
    zero_masked,
)

__all__ = ["Settle", "settle"]


@dataclass(frozen=True)
class Settle:
    """Settings: one run of `training` per share (of the weights that no mask cuts); shares rise and end at 1, where only other arrays still train."""

    training: Training = field(default_factory=lambda: Training(epochs=2, learning_rate=5e-4))
    shares: tuple[float, ...] = (0.5, 0.8, 1.0)

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0.0, *self.shares), self.shares, strict=False))
        good = bool(self.shares) and rising and self.shares[-1] == 1
        need(good, "Settle settings", f"shares={self.shares}", "rising shares in (0, 1] that end at 1")


def settle(
    session: Session,
    projections: Mapping[str, Projection],
    settings: Settle,
    *,
    penalty: Penalty | None = None,
    label: str = "levels",
) -> tuple[Mapping[str, float], ...]:
    """Leave every named array on its levels: W = Pi(W) of the last fit. Masked weights stay zero.

    Levels are fitted anew at each share, so weights that were put down earlier follow the scale. Returns per step and
    array the relative distance ||W - Pi(W)|| / ||W|| before the step's weights are put down.

    Raises ModelError where an array is unknown or a projection changes its shape, Diverged where training does.
    """
    net = session.net
    need(bool(projections), "the levels", "no projection", "at least one array with one")
    need_arrays(net, projections, "levels")
    zero_masked(net)
    support = {key: _support(net, key) for key in projections}
    fixed = {key: ~keep for key, keep in support.items()}  # the zeros of a mask are where they belong
    distances: list[Mapping[str, float]] = []
    for turn, share in enumerate(settings.shares):
        held: dict[str, Floats] = {}
        far: dict[str, float] = {}
        for key, values in arrays(net, projections, masked=True).items():
            levels = _levels(key, projections[key], values) * support[key]
            far[key] = relative_distance(values, levels)
            due = int((~support[key]).sum()) + round(share * int(support[key].sum()))
            fixed[key] = _nearest(np.abs(values - levels), fixed[key], due)
            held[key] = np.where(fixed[key], levels, values)
        distances.append(far)
        set_arrays(net, held)
        hooks = core_hooks(net, [penalty], then=_holding(net, fixed))
        session.fit(settings.training, f"{label} {turn + 1}/{len(settings.shares)}", hooks)
    return tuple(distances)


def _support(net: TrainableGraph, key: str) -> Bools:
    return masks_of(net)[key] if key in net.masks else np.ones(tuple(net.parameter(key).shape), dtype=np.bool_)


def _levels(key: str, project: Projection, values: Floats) -> Floats:
    levels = np.asarray(project(values), dtype=np.float64)
    good = levels.shape == values.shape and bool(np.isfinite(levels).all())
    need(good, f"the levels of {key!r}", f"shape {levels.shape}", f"finite values of shape {values.shape}")
    return levels


def _nearest(distance: Floats, fixed: Bools, count: int) -> Bools:
    """`count` weights: the fixed ones, then the nearest; ties go to the lower index."""
    order = np.argsort(np.where(fixed, -1.0, distance).ravel(), kind="stable")
    chosen = np.zeros(distance.size, dtype=np.bool_)
    chosen[order[:count]] = True
    return chosen.reshape(distance.shape)


def _holding(net: TrainableGraph, fixed: Mapping[str, Bools]) -> Callable[[], None]:
    """Puts the fixed weights back where they are now, after each step."""
    pairs = [
        (net.parameter(key), torch.from_numpy(chosen), net.parameter(key).detach().clone())
        for key, chosen in fixed.items()
    ]

    @torch.no_grad()
    def hold() -> None:
        for parameter, chosen, values in pairs:
            parameter.copy_(torch.where(chosen, values, parameter))

    return hold
