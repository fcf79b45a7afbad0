"""How much the loss bends along each output channel: Hutchinson's estimate of the Hessian's trace (EHAP, arXiv 2306.07030).

For random signs v, E[v * Hv] is the diagonal of H, so the mean of v * Hv summed over a channel is its trace. One v covers
the weights of all layers at once. EHAP's point is that half precision ranks channels as well and costs less; a plain
gradient scaler does not unscale second derivatives, so the loss is scaled by hand here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from he_runtime.errors import ModelError

from ..trainable import TrainableGraph, Transform

__all__ = ["PRECISIONS", "Probing", "Traces", "channel_sensitivity", "channel_traces", "hutchinson"]

Floats = npt.NDArray[np.float64]

PRECISIONS = ("fp32", "bf16", "fp16", "fp16-emulated")
_FIRST_SCALE = 2.0**12
_LEAST_SCALE = 2.0**-12  # below this it is not the format that overflows
_CLEAN_PROBES = 50  # after as many the scale doubles


@dataclass(frozen=True)
class Probing:
    """How the trace is estimated: at most `probes` probes; fewer once the estimate has settled.

    Settled means that the running mean of the summed trace moved by less than `tolerance`, relative, at each of
    `patience` probes in a row; a tolerance of 0 asks for all probes. Single channels settle later than their sum: on
    digits-cnn other signs move more ranks than any of the half formats does.

    `precision`: "fp32"; "bf16" and "fp16", autocast on the device of the network, the latter with a scaled loss;
    "fp16-emulated" rounds weights and node outputs to half precision, straight through.
    """

    precision: str = "fp32"
    probes: int = 300
    tolerance: float = 1e-3
    patience: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ModelError(
                f"cannot estimate a trace: got precision {self.precision!r}, need one of {list(PRECISIONS)}"
            )
        if self.probes < 1 or self.patience < 1 or not self.tolerance >= 0:
            raise ModelError(
                f"cannot estimate a trace: got {self.probes} probes, patience {self.patience}, tolerance "
                f"{self.tolerance}; need at least 1, 1 and 0"
            )


@dataclass(frozen=True)
class Traces:
    """Estimated trace of the Hessian's block of every output channel (out,), by array; and how it came about.

    `scale` is the last loss scale, `overflows` how many probes were repeated with a smaller one.
    """

    values: Mapping[str, Floats] = field(repr=False)
    probes: int
    settled: bool
    scale: float = 1.0
    overflows: int = 0


def channel_traces(
    net: TrainableGraph, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64], probing: Probing | None = None
) -> Traces:
    """Traces per output channel of every weight array, of the mean cross entropy on one fixed batch (B, *shape), (B,).

    In evaluation mode; the network is left as it was. Raises ModelError where derivatives are not finite.
    """
    probing = probing or Probing()
    weights = {key: net.parameter(key) for key in net.weight_keys()}
    device = next(iter(weights.values())).device
    inputs, targets = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)

    def loss() -> Tensor:
        with _autocast(probing.precision, device):
            return F.cross_entropy(net(inputs), targets)

    training = net.training
    net.eval()
    try:
        with _emulated_half(net) if probing.precision == "fp16-emulated" else nullcontext():
            return hutchinson(loss, weights, probing)
    finally:
        net.train(training)
        net.pre_activations = {}  # they hold the graph of the last loss


def channel_sensitivity(net: TrainableGraph, traces: Mapping[str, Floats]) -> dict[str, Floats]:
    """s_c = trace_c / p * |w_c|^2 per output channel c of p weights: what removing it costs, to second order (HAP)."""
    found = {}
    for key, trace in traces.items():
        weight = net.parameter(key).detach()
        masked = weight * net.masks[key] if key in net.masks else weight
        rows = masked.double().cpu().numpy().reshape(len(trace), -1)
        found[key] = trace / rows.shape[1] * (rows**2).sum(1)
    return found


def hutchinson(loss: Callable[[], Tensor], weights: Mapping[str, Tensor], probing: Probing | None = None) -> Traces:
    """Trace of the Hessian of `loss` per entry of the first axis of each weight tensor (out, ...).

    `loss` builds a scalar anew at each call; its value must not change. With precision "fp16" it is scaled: overflows
    halve the scale and repeat the probe, fifty clean probes double it. ModelError where derivatives are not finite.
    """
    probing = probing or Probing()
    generator = torch.Generator().manual_seed(probing.seed)
    products = _Products(loss, list(weights.values()), scaled=probing.precision == "fp16")
    sums = [np.zeros(len(w)) for w in weights.values()]
    total, calm, done = 0.0, 0, 0
    while done < probing.probes and calm < probing.patience:
        for channel_sum, part in zip(sums, products.probe(generator), strict=True):
            channel_sum += part
        done += 1
        before, total = total, float(sum(s.sum() for s in sums)) / done
        calm = calm + 1 if done > 1 and abs(total - before) < probing.tolerance * abs(total) else 0
    values = {key: s / done for key, s in zip(weights, sums, strict=True)}
    return Traces(values, done, calm >= probing.patience, products.scale, products.overflows)


class _Products:
    """v * Hv summed per output channel. The gradient's graph is built once and used by every probe at one scale."""

    def __init__(self, loss: Callable[[], Tensor], weights: list[Tensor], scaled: bool) -> None:
        self._loss, self._weights, self._scaled = loss, weights, scaled
        self.scale, self.overflows = (_FIRST_SCALE if scaled else 1.0), 0
        self._gradient: tuple[Tensor, ...] | None = None
        self._clean = 0

    def probe(self, generator: torch.Generator) -> list[Floats]:
        signs = [_signs(w, generator) for w in self._weights]
        while True:
            parts = self._parts(signs)
            if all(np.isfinite(part).all() for part in parts):
                self._succeeded()
                return parts
            self._failed()

    def _parts(self, signs: list[Tensor]) -> list[Floats]:
        if self._gradient is None:
            self._gradient = torch.autograd.grad(self._loss() * self.scale, self._weights, create_graph=True)
        # A layer in which the gradient is constant has no second derivative: its trace is zero.
        bent = [i for i, g in enumerate(self._gradient) if g.requires_grad]
        products = torch.autograd.grad(
            [self._gradient[i] for i in bent],
            self._weights,
            [signs[i] for i in bent],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        # Unscaled in double precision, where neither the product nor the sum can overflow.
        return [
            (v.double() * hv.double() / self.scale).reshape(len(v), -1).sum(1).cpu().numpy()
            for v, hv in zip(signs, products, strict=True)
        ]

    def _succeeded(self) -> None:
        self._clean += 1
        if self._scaled and self._clean == _CLEAN_PROBES:
            self._rescale(2.0)

    def _failed(self) -> None:
        if not self._scaled or self.scale <= _LEAST_SCALE:
            raise ModelError(
                "cannot estimate a trace: got second derivatives that are not finite, need a loss that is smooth and "
                "finite on the batch; try precision 'fp32' or training that has not diverged"
            )
        self.overflows += 1
        self._rescale(0.5)

    def _rescale(self, factor: float) -> None:
        self.scale, self._gradient, self._clean = self.scale * factor, None, 0


def _signs(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Random signs in the shape of a weight, the same on every device."""
    bits = torch.randint(0, 2, weight.shape, generator=generator)
    return (2 * bits - 1).to(device=weight.device, dtype=weight.dtype)


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtype=types[precision]) if precision in types else nullcontext()


@contextmanager
def _emulated_half(net: TrainableGraph) -> Iterator[None]:
    """Weights and the outputs of all nodes rounded to half precision, after what the network does to them already."""
    rounding, observers = net.rounding, net.observers
    names = [node.name for node in net.graph.nodes]
    try:
        net.rounding = {**rounding, **{key: _then_half(rounding.get(key)) for key in net.weight_keys()}}
        net.observers = {**observers, **{name: _then_half(observers.get(name)) for name in names}}
        yield
    finally:
        net.rounding, net.observers = rounding, observers


def _then_half(first: Transform | None) -> Transform:
    def rounded(values: Tensor) -> Tensor:
        values = values if first is None else first(values)
        return values + (values.detach().half().to(values.dtype) - values.detach())

    return rounded
