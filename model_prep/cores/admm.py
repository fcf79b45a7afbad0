"""ADMM: training towards a constraint set.

min f(W) subject to W in S is split into W and Z = W with Z in S. Each round trains W on f(W) + rho/2 ||W - Z + U||^2 (the
squared norm), then sets Z to the projection of W + U and adds W - Z to the scaled dual U. An array may have several
constraints (a sparsity structure and the levels of a quantizer), each with its own Z, U and rho. Ye et al., arXiv
1903.09769, section 3; Yuan et al., arXiv 1908.11691.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

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

__all__ = ["Admm", "AdmmReport", "Constraints", "Split", "SplitState", "admm", "on_support"]


@dataclass(frozen=True)
class Split:
    """One constraint of one array. `rho` None takes that of the settings; `name` tells it apart in reports."""

    project: Projection
    rho: float | None = None
    name: str = ""

    def __post_init__(self) -> None:
        need(self.rho is None or self.rho > 0, "a split", f"rho={self.rho}", "rho > 0")


Constraints = Mapping[str, Projection | Split | Sequence[Projection | Split]]


@dataclass(frozen=True)
class Admm:
    """Settings: `rounds` of `training` each, with rho * growth^round (multi-rho) as the penalty.

    `rescale` divides the scaled dual by the growth as well, so that the unscaled dual rho * U stays what it was (Boyd
    et al., Distributed Optimization, section 3.4.1). Rounds end early once every residual is below `tolerance`.
    The default rho is the authors', for thousands of steps per round; a round of under a hundred needs 1e-2 to 1e-1,
    or U runs away from a W that cannot follow and residuals rise.
    `hard` leaves the weights projected; without it, a later call can go on from the report's state.
    """

    training: Training = field(default_factory=lambda: Training(epochs=4, learning_rate=5e-3))
    rounds: int = 10
    rho: float = 1e-3
    growth: float = 1.3
    rescale: bool = True
    tolerance: float = 0.0
    hard: bool = True

    def __post_init__(self) -> None:
        need(self.rounds >= 0, "Admm settings", f"rounds={self.rounds}", "rounds >= 0")
        need(self.rho > 0, "Admm settings", f"rho={self.rho:g}", "rho > 0")
        need(self.growth >= 1, "Admm settings", f"growth={self.growth:g}", "growth >= 1")
        need(self.tolerance >= 0, "Admm settings", f"tolerance={self.tolerance:g}", "tolerance >= 0")


@dataclass(frozen=True)
class SplitState:
    """Where one constraint stands between rounds: Z, the scaled dual U (both in the array's shape), and rho."""

    auxiliary: Floats  # Z
    dual: Floats  # U
    rho: float


State = Mapping[str, tuple[SplitState, ...]]


@dataclass(frozen=True)
class AdmmReport:
    """Per round the residual ||W - Z|| / ||W|| of every constraint ("key" or "key/name"), and where it ended.

    `keep` is True where a weight is not zero at the end; `state` continues the run (`start`).
    """

    residuals: tuple[Mapping[str, float], ...]
    keep: Mapping[str, Bools]
    state: State

    @property
    def worst(self) -> tuple[float, ...]:
        """The largest residual of each round: below 1e-2 the hard projection changes little."""
        return tuple(max(r.values()) for r in self.residuals)


def admm(
    session: Session,
    projections: Constraints,
    settings: Admm,
    *,
    start: State | None = None,
    penalty: Penalty | None = None,
    label: str = "ADMM",
) -> AdmmReport:
    """Train the network towards its constraints and, unless told otherwise, leave it on them: W = Pi(W).

    `projections` maps array names to one or several constraints. Weights that a mask holds at zero stay zero, in W and
    in every Z (masked progressive, arXiv 1903.09769, section 4). With several constraints the hard projections follow
    each other in order, and a zero that one makes stays. `start` is the state of an earlier report: a warm start.

    Raises ModelError where an array is unknown or a projection does not return finite values in the array's shape,
    Diverged where training does.
    """
    net, splits = session.net, {key: _splits(value) for key, value in projections.items()}
    need(bool(splits), "ADMM", "no constraint", "at least one array with a projection")
    need_arrays(net, splits, "constraints")
    zero_masked(net)
    state = dict(start) if start is not None else _fresh(net, splits, settings)
    fits = state.keys() == splits.keys() and all(len(state[k]) == len(splits[k]) for k in splits)
    need(fits, "the start of ADMM", f"a state of {sorted(state)}", f"one per constraint of {sorted(splits)}")
    residuals: list[Mapping[str, float]] = []
    for turn in range(settings.rounds):
        hooks = core_hooks(net, [_penalty(net, state), penalty])
        session.fit(settings.training, f"{label} {turn + 1}/{settings.rounds}", hooks)
        state, seen = _update(net, splits, state, settings)
        residuals.append(seen)
        if max(seen.values()) < settings.tolerance:
            break
    if settings.hard:
        set_arrays(net, {key: _hard(net, key, chosen) for key, chosen in splits.items()})
    keep = {key: value != 0 for key, value in arrays(net, splits, masked=True).items()}
    return AdmmReport(tuple(residuals), keep, state)


def on_support(project: Projection, keep: Bools) -> Projection:
    """A projection of the kept values alone, as a vector; the others are zero.

    For levels that exclude zero (binary, or quantized survivors of a pruning): zeros would spoil the fit of the scale.
    """

    def projected(values: Floats) -> Floats:
        result = np.zeros_like(values)
        result[keep] = project(values[keep])
        return result

    return projected


def _splits(value: Projection | Split | Sequence[Projection | Split]) -> tuple[Split, ...]:
    several = value if isinstance(value, Sequence) else [value]
    return tuple(v if isinstance(v, Split) else Split(v) for v in several)


def _fresh(
    net: TrainableGraph, splits: Mapping[str, tuple[Split, ...]], settings: Admm
) -> dict[str, tuple[SplitState, ...]]:
    """Z = Pi(W), U = 0."""
    values = arrays(net, splits, masked=True)
    return {
        key: tuple(
            SplitState(_projected(net, key, split, values[key]), np.zeros_like(values[key]), split.rho or settings.rho)
            for split in chosen
        )
        for key, chosen in splits.items()
    }


def _penalty(net: TrainableGraph, state: State) -> Penalty:
    """sum rho/2 ||W - (Z - U)||^2 over all constraints."""
    terms = [
        (net.parameter(key), one.rho / 2, torch.as_tensor(one.auxiliary - one.dual, dtype=torch.float32))
        for key, several in state.items()
        for one in several
    ]

    def penalty() -> Tensor:
        return torch.stack([half * (w - target).square().sum() for w, half, target in terms]).sum()

    return penalty


def _update(
    net: TrainableGraph, splits: Mapping[str, tuple[Split, ...]], state: State, settings: Admm
) -> tuple[dict[str, tuple[SplitState, ...]], dict[str, float]]:
    """Z = Pi(W + U), U += W - Z, rho *= growth; and how far W is from Z."""
    updated: dict[str, tuple[SplitState, ...]] = {}
    residuals: dict[str, float] = {}
    for key, w in arrays(net, splits, masked=True).items():
        several = []
        for index, (split, old) in enumerate(zip(splits[key], state[key], strict=True)):
            z = _projected(net, key, split, w + old.dual)
            u = (old.dual + w - z) / (settings.growth if settings.rescale else 1.0)
            several.append(SplitState(z, u, old.rho * settings.growth))
            name = split.name or (str(index) if len(splits[key]) > 1 else "")
            residuals[f"{key}/{name}" if name else key] = relative_distance(w, z)
        updated[key] = tuple(several)
    return updated, residuals


def _projected(net: TrainableGraph, key: str, split: Split, values: Floats) -> Floats:
    """The projection, checked, with the zeros of the network's mask."""
    result = np.asarray(split.project(values), dtype=np.float64)
    what = f"projection {split.name!r} of {key!r}"
    need(result.shape == values.shape, what, f"shape {result.shape}", f"{values.shape}")
    need(bool(np.isfinite(result).all()), what, "values that are not finite", "finite values")
    return result * masks_of(net)[key] if key in net.masks else result


def _hard(net: TrainableGraph, key: str, splits: tuple[Split, ...]) -> Floats:
    values = arrays(net, [key], masked=True)[key]
    for index, split in enumerate(splits):
        result = _projected(net, key, split, values)
        values = result * (values != 0) if index else result
    return values
