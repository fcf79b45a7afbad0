"""Weights of ever fewer bits, down to signs: ADMM towards the levels, then a growing share fixed on them.

The papers' (Ye et al., arXiv 1903.09769 and 1905.00789): levels alpha * Q with alpha fitted per array, first and last
layer included, biases and batch norms real; progressive order of bits (8, 4, ternary, binary), each rung started from
the last; shares of the weights fixed on their levels while the others train. The project's own: every rung ends with
all weights on its levels before the next begins.

With `finish` the last rung ends in straight-through training of all its weights, which outdoes the fixed shares by far on the
networks here (digits CNN, signs: 0.98 to 0.99 against 0.97).

What takes levels is the network before folding. Its learned quadratics would give every channel a scale, and folding leave rows
+-alpha_row, which cost one product by a constant per activation in column packing (docs/decisions/0021). With `shared` the
coefficient of x^2 is one for all channels: the exported arrays are exactly alpha * Q, and activations cost no product either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..cores.admm import Admm, admm, on_support
from ..cores.quantized import Qat, harden, qat, straight_through_of
from ..cores.session import Floats, Projection, masks_of, weights
from ..cores.settled import Settle, settle
from ..quantizers import AlphaQ, Binary, Bools, Quantized, Quantizer, Ternary
from ..settings import Training, require
from ..stage import Stage
from ..trainable import Transform
from .method import Card, Method, register

__all__ = ["Levels", "quantizer_of"]

BINARY, TERNARY, MOST_BITS = 1, 2, 8


@register(
    Card(
        "levels",
        "quantization",
        "integers of few bits times one scale per array, down to signs",
        "plaintext products in column packing, to none at all, and the levels and modulus bits that they take",
        "Ye et al., arXiv 1903.09769 and 1905.00789",
    )
)
@dataclass(frozen=True)
class Levels(Method):
    """`ladder` is the bits of each rung, falling: 2 are the levels -1, 0, 1 and 1 is signs alone, times alpha.

    Each rung is a run of ADMM (`admm`) and one of growing fixed shares (`settle`); `finish` follows the last. Weights that an
    earlier step pruned stay zero, and the others then have no level zero.
    """

    ladder: tuple[int, ...] = (8, 4, TERNARY, BINARY)
    shared: bool = True
    admm: Admm = field(
        default_factory=lambda: Admm(Training(epochs=3, learning_rate=1e-2), rounds=8, rho=1e-2, growth=1.5, hard=False)
    )
    settle: Settle = field(
        default_factory=lambda: Settle(Training(epochs=4, learning_rate=1e-2), (0.3, 0.5, 0.7, 0.85, 0.95, 1.0))
    )
    finish: Training = field(default_factory=lambda: Training(epochs=60, learning_rate=1e-2))

    def __post_init__(self) -> None:
        bits = self.ladder
        known = bool(bits) and all(BINARY <= b <= MOST_BITS for b in bits)
        require(known, self, f"a ladder of bits in {BINARY}..{MOST_BITS}")
        require(all(a > b for a, b in pairwise(bits)), self, "a ladder that falls")
        require(not self.admm.hard, self, "admm.hard = false: the shares put weights onto their levels")

    def apply(self, stage: Stage) -> None:
        stage.need_unfolded("levels")
        keys = [key for key in stage.net.weight_keys() if key not in stage.quantizers]
        rungs = [self._rung(stage, keys, bits) for bits in self.ladder]
        self._finish(stage, keys)
        if self.shared:
            stage.fold()
        found = {key: _levels(stage, key, self.ladder[-1]) for key in keys}
        if self.shared:
            stage.quantizers.update({key: _OnGrid(levels.scale) for key, levels in found.items()})
        else:
            stage.settled = self.card.name
        stage.report(
            ladder=list(self.ladder),
            residuals=rungs,
            levels={key: len(np.unique(levels.levels)) for key, levels in found.items()},
            scales={key: levels.scale for key, levels in found.items()},
        )

    def _rung(self, stage: Stage, keys: list[str], bits: int) -> list[float]:
        """One rung; the largest ADMM residual of each round."""
        projections = {key: _projection(stage, key, bits) for key in keys}
        report = admm(stage, projections, self.admm, penalty=stage.penalty, label=f"{bits} bits")
        settle(stage, projections, self.settle, penalty=stage.penalty, label=f"{bits} bits, fixed")
        return [round(r, 6) for r in report.worst]

    def _finish(self, stage: Stage, keys: list[str]) -> None:
        last = {key: straight_through_of(_projection(stage, key, self.ladder[-1])) for key in keys}
        qat(
            stage,
            last | (_shared(stage) if self.shared else {}),
            Qat(self.finish, 0),
            penalty=stage.penalty,
            label="signs",
        )
        harden(stage.net)


def quantizer_of(bits: int) -> Quantizer:
    """The projection onto levels of that many bits: signs, signs and zero, or integers of more."""
    return {BINARY: Binary(), TERNARY: Ternary()}.get(bits) or AlphaQ(bits)


def _projection(stage: Stage, key: str, bits: int) -> Projection:
    project = partial(_values, quantizer_of(bits))
    keep = _kept(stage)
    return on_support(partial(_survivors, quantizer_of(bits)), keep[key]) if key in keep else project


def _values(quantizer: Quantizer, values: Floats) -> Floats:
    return quantizer.project(values).values


def _survivors(quantizer: Quantizer, values: Floats) -> Floats:
    """Of weights that a pruning left: zero is no level of theirs."""
    return quantizer.project(values, np.ones(values.shape, dtype=np.bool_)).values


def _kept(stage: Stage) -> Mapping[str, Bools]:
    return masks_of(stage.net)


def _levels(stage: Stage, key: str, bits: int) -> Quantized:
    """The levels that an array is on."""
    return quantizer_of(bits).project(weights(stage.net)[key], _kept(stage).get(key))


def _shared(stage: Stage) -> dict[str, Transform]:
    """For the coefficient of x^2 of every quadratic that replaced an activation."""
    net = stage.net
    quadratics = [n for n in net.graph.nodes if n.op == "quadratic" and n.name in net.sites]
    return {n.arrays["a"]: _OneForAll(net.sites[n.name].unit) for n in quadratics}


@dataclass(frozen=True, eq=False)
class _OneForAll:
    """Coefficients, in units of their channels, by the mean of their magnitudes: a common sign lets squares be completed alike."""

    unit: Floats

    def __call__(self, values: Tensor) -> Tensor:
        unit = torch.as_tensor(self.unit, dtype=values.dtype)
        return (values / unit).abs().mean() * unit


@dataclass(frozen=True)
class _OnGrid(Quantizer):
    """For what is on the multiples of a known step already."""

    step: float

    def _project(self, values: Floats, mask: Bools | None) -> Quantized:
        return Quantized(np.rint(values / self.step).astype(np.int64), self.step)
