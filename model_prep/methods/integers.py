"""Symmetric integer weights with straight-through training on the folded network (Chong et al., arXiv 2306.07030)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from ..cores.quantized import Qat, qat
from ..quantizers import Symmetric
from ..settings import Training, require
from ..stage import Stage
from ..trainable import straight_through
from .method import Card, Method, register

__all__ = ["IntegerWeights"]


@register(
    Card(
        "integers",
        "quantization",
        "symmetric integers, one step per tensor; asymmetric activations",
        "modulus bits in column packing: constants of few bits need no scale of their own",
        "Chong, Gupta, Chen, arXiv 2306.07030; Jacob et al., CVPR 2018",
    )
)
@dataclass(frozen=True)
class IntegerWeights(Method):
    """`bits` per weight. With `activation_bits`, activations are rounded too, in training only: under CKKS nothing is.

    What stays of it is each activation's range, which goes into the report.
    """

    bits: int = 8
    activation_bits: int = 0
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        require(2 <= self.bits <= 16, self, "bits in 2..16")
        bits = self.activation_bits
        require(bits == 0 or 2 <= bits <= 16, self, "activation_bits 0 or in 2..16")

    def apply(self, stage: Stage) -> None:
        stage.need_unquantized("integers")
        stage.fold()
        keys = [key for key in stage.net.weight_keys() if key not in stage.quantizers]
        rounding = dict.fromkeys(keys, partial(straight_through, bits=self.bits))
        report = qat(stage, rounding, Qat(self.training, self.activation_bits))
        stage.net.observers = {}  # what is exported rounds no activation
        stage.quantizers.update(dict.fromkeys(keys, Symmetric(self.bits)))
        stage.report(bits=self.bits, ranges={name: [r.low, r.high] for name, r in report.ranges.items()})
