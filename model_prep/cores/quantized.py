"""Quantization-aware training.

Weights pass through any straight-through quantizer; activations through an asymmetric integer grid whose range is a moving
average of what each batch showed, frozen in the last part of training. Chong et al., arXiv 2306.07030; Jacob et al., CVPR
2018, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite

import torch
from torch import Tensor

from ..graph import ACTIVATION
from ..settings import Training
from ..trainable import TrainableGraph, Transform
from .session import Penalty, Projection, Session, core_hooks, masks_of, need, need_arrays, zero_masked

__all__ = ["ActivationObserver", "ActivationRange", "Qat", "QatReport", "harden", "qat", "straight_through_of"]


@dataclass(frozen=True)
class Qat:
    """Settings: one run of `training`; activations on `activation_bits` bits (0: left alone).

    Ranges follow each batch with weight `decay` and are fixed in the last part `frozen` of the steps.
    """

    training: Training = field(default_factory=lambda: Training(epochs=2, learning_rate=2e-4))
    activation_bits: int = 8
    decay: float = 0.01
    frozen: float = 0.2

    def __post_init__(self) -> None:
        bits = self.activation_bits
        need(bits == 0 or 2 <= bits <= 16, "Qat settings", f"activation_bits={bits}", "0 or 2..16")
        need(0 < self.decay <= 1, "Qat settings", f"decay={self.decay:g}", "decay in (0, 1]")
        need(0 <= self.frozen <= 1, "Qat settings", f"frozen={self.frozen:g}", "frozen in [0, 1]")


@dataclass(frozen=True)
class ActivationRange:
    """A node's outputs as unsigned integers q: value = scale * (q - zero_point), q in 0 .. 2^bits - 1."""

    low: float  # <= 0, so that zero is on the grid
    high: float  # >= 0
    bits: int

    @property
    def scale(self) -> float:
        return (self.high - self.low) / float(2**self.bits - 1)

    @property
    def zero_point(self) -> int:
        return round(-self.low / self.scale) if self.scale else 0


class ActivationObserver:
    """An entry of TrainableGraph.observers: watches one node's output and rounds it to an asymmetric grid.

    The first batch gives the range, later ones move it by `decay`; only passes that record gradients are watched, so
    evaluation changes nothing. Gradients pass where the value lies inside the grid and stop where it was clipped. Until
    a batch was seen, and while all outputs are zero, values pass unchanged; so do outputs that are not finite, whose
    divergence is for `fit` to find.
    """

    def __init__(self, bits: int, decay: float) -> None:
        self._bits, self._decay = bits, decay
        self._bounds: tuple[float, float] | None = None
        self.frozen = False

    @property
    def range(self) -> ActivationRange:
        low, high = self._bounds or (0.0, 0.0)
        return ActivationRange(min(low, 0.0), max(high, 0.0), self._bits)

    def __call__(self, x: Tensor) -> Tensor:
        low, high = float(x.detach().min()), float(x.detach().max())
        if not (isfinite(low) and isfinite(high)):
            return x
        if torch.is_grad_enabled() and not self.frozen:
            self._watch(low, high)
        grid = self.range
        if grid.scale == 0:
            return x
        lowest, highest = -grid.zero_point, 2**self._bits - 1 - grid.zero_point
        inside = torch.clamp(x / grid.scale, lowest, highest)
        return _passing(torch.round(inside.detach()), inside) * grid.scale

    def _watch(self, low: float, high: float) -> None:
        if self._bounds is not None:
            share = self._decay
            low = (1 - share) * self._bounds[0] + share * low
            high = (1 - share) * self._bounds[1] + share * high
        self._bounds = (low, high)


@dataclass(frozen=True)
class QatReport:
    """The observed range of each node's outputs, by node name."""

    ranges: Mapping[str, ActivationRange]


def qat(
    session: Session,
    rounding: Mapping[str, Transform],
    settings: Qat,
    *,
    nodes: Iterable[str] | None = None,
    penalty: Penalty | None = None,
    label: str = "quantization",
) -> QatReport:
    """Train with quantized weights and activations; the network keeps both afterwards, its ranges frozen.

    `rounding` maps array names to straight-through quantizers (see `straight_through_of`). `nodes` are those whose
    outputs are observed: by default every activation and quadratic. Masked weights stay zero, also where a quantizer
    knows no zero. The trained values remain unrounded in the parameters; `harden` rounds them for good.

    Raises ModelError where an array or node is unknown; Diverged where training does, with the quantizers removed.
    """
    net = session.net
    observers = _observers(net, settings, nodes)
    need_arrays(net, rounding, "quantizers")
    before, seen = dict(net.rounding), dict(net.observers)
    zero_masked(net)
    kept = masks_of(net)
    chosen = {key: _Keeping(r, torch.from_numpy(kept[key])) if key in kept else r for key, r in rounding.items()}
    net.rounding, net.observers = {**before, **chosen}, {**seen, **observers}

    def freeze(progress: float) -> None:
        for observer in observers.values():
            observer.frozen = progress >= 1 - settings.frozen

    try:
        session.fit(settings.training, label, replace(core_hooks(net, [penalty]), before_step=freeze))
    except BaseException:
        net.rounding, net.observers = before, seen
        raise
    freeze(1.0)
    return QatReport({name: observer.range for name, observer in observers.items()})


def straight_through_of(project: Projection) -> Transform:
    """A quantizer for TrainableGraph.rounding from a NumPy projection: its values forward, the identity backward."""
    return _StraightThrough(project)


@dataclass(frozen=True, eq=False)
class _StraightThrough:
    """A class, like _Keeping, so that a network can be kept on disk with its quantizers."""

    project: Projection

    def __call__(self, values: Tensor) -> Tensor:
        exact = values.detach()
        if not torch.isfinite(exact).all():
            return values  # no levels fit it: `fit` finds the loss not finite, and says where
        grid = torch.as_tensor(self.project(exact.double().numpy()), dtype=values.dtype)
        return _passing(grid, values)


def _passing(forward: Tensor, backward: Tensor) -> Tensor:
    """Exactly `forward`, with the gradient of `backward`: adding their difference instead would round off the grid."""
    result: Tensor = forward + (backward - backward.detach())
    return result


@torch.no_grad()
def harden(net: TrainableGraph) -> None:
    """Give the parameters the values that their quantizers make of them, masks applied, and remove the quantizers."""
    for key, rounding in net.rounding.items():
        parameter = net.parameter(key)
        values = parameter * net.masks[key] if key in net.masks else parameter.clone()
        parameter.copy_(rounding(values))
    net.rounding = {}


@dataclass(frozen=True, eq=False)
class _Keeping:
    """`rounding`, with the weights outside the mask (a bool tensor) kept zero."""

    rounding: Transform
    mask: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        return self.rounding(values) * self.mask


def _observers(net: TrainableGraph, settings: Qat, nodes: Iterable[str] | None) -> dict[str, ActivationObserver]:
    known = [n.name for n in net.graph.nodes]
    default = [n.name for n in net.graph.nodes if n.op in ("quadratic", ACTIVATION)]
    chosen = default if nodes is None else list(nodes)
    unknown = sorted(set(chosen) - set(known))
    need(not unknown, "observed nodes", f"{unknown}", f"some of {known}")
    bits = settings.activation_bits
    return {name: ActivationObserver(bits, settings.decay) for name in chosen} if bits else {}
