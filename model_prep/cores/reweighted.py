"""Reweighted group lasso: a penalty that counts living groups.

Each round trains on f(W) + sum over arrays lambda_i * sum over groups c_g * P_g * n_g, where n_g = ||W_g|| and
P_g = 1/(n_g + epsilon) is refreshed before the round: P_g * n_g is near 1 for a living group and near 0 for a dead one,
so the penalty counts what lives and hardly shrinks what is large. Power 2 takes P_g * n_g^2 with P_g = 1/(n_g^2 + epsilon).
An array whose living groups are within its cap is no longer penalised. Zhang et al., arXiv 2004.05531; Ma et al., arXiv
2001.08357; Li et al., arXiv 2009.08065, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..settings import Training
from ..trainable import TrainableGraph
from .session import Floats, Penalty, Session, arrays, core_hooks, need, need_arrays, zero_masked

__all__ = ["Grouping", "Labels", "Reweighted", "ReweightedReport", "Round", "group_norms", "reweighted"]

Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Grouping:
    """A partition of one array: the group number of each weight (in the array's shape, from 0).

    `costs` (groups,) multiplies each group's penalty, as by the measured cost of the operations that the group keeps
    alive; they are used as they are, so costs around 1 leave the meaning of the strength.
    """

    labels: Labels
    costs: Floats | None = None
    name: str = ""

    @property
    def groups(self) -> int:
        return len(self.costs) if self.costs is not None else int(self.labels.max(initial=-1)) + 1


Groupings = Mapping[str, Labels | Grouping | Sequence[Labels | Grouping]]


@dataclass(frozen=True)
class Reweighted:
    """Settings: `rounds` of `training` each with lambda_i = strengths[key], or `strength` where it has none.

    `caps[key]`: at an epoch where no more than so many of an array's groups live (over all its groupings; norm above
    `threshold`, by default epsilon, where P_g * n_g = 1/2), the array's lambda is 0; if more come back it is on again.
    Rounds end early when every array has a cap and is within it, or when the weights moved by at most `tolerance` in one
    round (L2 over all arrays). `start` says how P begins: from the "weights", or from "ones" (with one round: plain,
    static group lasso).
    """

    training: Training = field(default_factory=lambda: Training(epochs=4, learning_rate=5e-3))
    rounds: int = 4
    strength: float = 3e-3
    strengths: Mapping[str, float] = field(default_factory=dict)
    epsilon: float = 1e-3
    power: int = 1
    caps: Mapping[str, int] = field(default_factory=dict)
    threshold: float | None = None
    tolerance: float = 1e-2
    start: str = "weights"

    def __post_init__(self) -> None:
        what = "Reweighted settings"
        need(self.rounds >= 0, what, f"rounds={self.rounds}", "rounds >= 0")
        need(min([self.strength, *self.strengths.values()]) >= 0, what, "a negative strength", "strengths >= 0")
        need(self.epsilon > 0, what, f"epsilon={self.epsilon:g}", "epsilon > 0")
        need(self.power in (1, 2), what, f"power={self.power}", "power 1 or 2")
        need(all(cap >= 0 for cap in self.caps.values()), what, f"caps={dict(self.caps)}", "caps >= 0")
        need(self.threshold is None or self.threshold > 0, what, f"threshold={self.threshold}", "threshold > 0")
        need(self.start in ("weights", "ones"), what, f"start={self.start!r}", "'weights' or 'ones'")

    @property
    def alive(self) -> float:
        """The norm above which a group lives: where P_g * n_g^power = 1/2, unless `threshold` says otherwise."""
        return self.threshold if self.threshold is not None else self.epsilon ** (1 / self.power)


@dataclass(frozen=True)
class Round:
    """One round by array: lambda in its last epoch, living groups after it; the count before it; how far W moved."""

    strengths: Mapping[str, float]
    living: Mapping[str, int]
    count: float  # sum c_g P_g n_g^power at the start of the round
    moved: float


@dataclass(frozen=True)
class ReweightedReport:
    """What each round did, why they ended ("rounds", "caps" or "still"), and each grouping's norms at the end."""

    rounds: tuple[Round, ...]
    stopped: str
    norms: Mapping[str, tuple[Floats, ...]]


def group_norms(labels: Tensor, values: Tensor, groups: int, power: int = 1) -> Tensor:
    """||W_g||^power (groups,) of flat labels and values; a group of zeros has gradient zero, not an undefined one."""
    squares = torch.zeros(groups, dtype=values.dtype).index_add(0, labels, values.square())
    if power == 2:
        return squares
    dead = squares == 0
    return torch.where(dead, 0.0, torch.where(dead, 1.0, squares).sqrt())


def reweighted(
    session: Session,
    labels: Groupings,
    settings: Reweighted,
    *,
    penalty: Penalty | None = None,
    label: str = "reweighting",
) -> ReweightedReport:
    """Train groups towards zero; nothing is cut. The caller cuts by the norms and retrains (masked.py).

    `labels` maps array names to one or several groupings, whose penalties add up (block rows and block columns: BLK-REW).
    Weights that a mask holds at zero stay zero and count in no norm.

    Raises ModelError where an array is unknown or labels do not fit it, Diverged where training does.
    """
    net, penalties = session.net, _penalties(session.net, labels, settings)
    unknown = sorted({*settings.strengths, *settings.caps} - set(penalties))
    need(not unknown, "the strengths or caps of a reweighting", f"{unknown}", f"some of {sorted(penalties)}")
    zero_masked(net)
    rounds: list[Round] = []
    stopped = "rounds"
    before = arrays(net, penalties)
    for turn in range(settings.rounds):
        strengths = {key: p.strength(settings) for key, p in penalties.items()}
        if not any(strengths.values()) and settings.caps:
            stopped = "caps"
            break
        count = sum(p.refresh(settings, first=turn == 0) for p in penalties.values())

        def adapt(_: float, now: dict[str, float] = strengths) -> None:
            now.update({key: p.strength(settings) for key, p in penalties.items()})

        hooks = replace(core_hooks(net, [_total(penalties, strengths), penalty]), before_epoch=adapt)
        session.fit(settings.training, f"{label} {turn + 1}/{settings.rounds}", hooks)
        after = arrays(net, penalties)
        moved = float(np.sqrt(sum(np.sum((after[key] - before[key]) ** 2) for key in after)))
        rounds.append(Round(strengths, {key: p.living(settings) for key, p in penalties.items()}, count, moved))
        before = after
        if moved <= settings.tolerance:
            stopped = "still"
            break
    return ReweightedReport(tuple(rounds), stopped, {key: p.norms() for key, p in penalties.items()})


class _Penalty:
    """The penalty of one array: its groupings, and the P of the round."""

    def __init__(self, net: TrainableGraph, key: str, groupings: tuple[Grouping, ...], power: int) -> None:
        self._parameter, self._power, self._key = net.parameter(key), power, key
        self._labels = [torch.as_tensor(g.labels.ravel(), dtype=torch.int64) for g in groupings]
        self._sizes = [g.groups for g in groupings]
        self._costs = [torch.ones(g.groups) if g.costs is None else torch.tensor(g.costs).float() for g in groupings]
        self._factors: list[Tensor] = []

    def _norms(self, power: int) -> list[Tensor]:
        flat = self._parameter.reshape(-1)
        return [group_norms(at, flat, size, power) for at, size in zip(self._labels, self._sizes, strict=True)]

    def __call__(self) -> Tensor:
        """sum c_g P_g n_g^power over all groupings."""
        terms = [(f * n).sum() for f, n in zip(self._factors, self._norms(self._power), strict=True)]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def refresh(self, settings: Reweighted, *, first: bool) -> float:
        """P_g from the weights as they are; returns the penalty at these weights."""
        norms = self._norms(self._power)
        ones = first and settings.start == "ones"
        factors = [torch.ones_like(n) if ones else 1.0 / (n + settings.epsilon) for n in norms]
        self._factors = [c * p for c, p in zip(self._costs, factors, strict=True)]
        return float(self())

    @torch.no_grad()
    def norms(self) -> tuple[Floats, ...]:
        return tuple(n.double().numpy() for n in self._norms(1))

    def living(self, settings: Reweighted) -> int:
        return sum(int((n > settings.alive).sum()) for n in self.norms())

    def strength(self, settings: Reweighted) -> float:
        """lambda_i: zero while the array is within its cap."""
        within = self._key in settings.caps and self.living(settings) <= settings.caps[self._key]
        return 0.0 if within else settings.strengths.get(self._key, settings.strength)


def _total(penalties: Mapping[str, _Penalty], strengths: Mapping[str, float]) -> Penalty:
    """sum lambda_i R_i, with the strengths as they are when it is asked."""

    def total() -> Tensor:
        terms = [strength * penalties[key]() for key, strength in strengths.items() if strength]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    return total


def _penalties(net: TrainableGraph, labels: Groupings, settings: Reweighted) -> dict[str, _Penalty]:
    need(bool(labels), "a reweighting", "no groups", "labels of at least one array")
    need_arrays(net, labels, "groups")
    result = {}
    for key, value in labels.items():
        several = value if isinstance(value, Sequence) else [value]
        groupings = tuple(v if isinstance(v, Grouping) else Grouping(v) for v in several)
        for grouping in groupings:
            _check(key, grouping, tuple(net.parameter(key).shape))
        result[key] = _Penalty(net, key, groupings, settings.power)
    return result


def _check(key: str, grouping: Grouping, shape: tuple[int, ...]) -> None:
    labels, costs, what = grouping.labels, grouping.costs, f"the groups of {key!r}"
    need(labels.shape == shape, what, f"labels of shape {labels.shape}", f"{shape}")
    whole = np.issubdtype(labels.dtype, np.integer) and labels.min(initial=0) >= 0
    need(bool(whole), what, f"labels of {labels.dtype}", "integers from 0")
    if costs is not None:
        most = int(labels.max(initial=-1)) + 1
        need(costs.ndim == 1 and len(costs) >= most, what, f"costs of shape {costs.shape}", f"({most},)")
        need(bool(np.isfinite(costs).all() and (costs >= 0).all()), what, "costs below 0 or not finite", "costs >= 0")
