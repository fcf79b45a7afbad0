"""The diagonal of the empirical Fisher information: how much single weights move the loss of single samples.

E[(dL/dw)^2] over the training data approximates the Hessian's diagonal of a trained network, so half of it times w^2 is
what setting a weight to zero costs (optimal brain damage's saliency; Theis et al., arXiv 1801.05787).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

from he_runtime.errors import ModelError

from ..trainable import TrainableGraph

__all__ = ["diagonal_fisher"]

Floats = npt.NDArray[np.float64]

_CHUNK_ENTRIES = 2**24  # gradients held at a time: 64 MiB in single precision


def diagonal_fisher(
    net: TrainableGraph, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64], *, micro_batch: int = 1
) -> dict[str, Floats]:
    """E[(dL/dw)^2] in the shape of every weight array, L the cross entropy of one sample; x (B, *shape), y (B,).

    With `micro_batch` m > 1 the mean gradient of m samples is squared and multiplied by m: as many times faster, and
    the same in expectation where the gradients' mean is zero, as it is after training. Samples that fill no micro-batch
    are left out. In evaluation mode; the network is left as it was. ModelError where a batch is empty or a gradient is
    not finite.
    """
    count = len(x) // micro_batch if micro_batch > 0 else 0
    if count == 0:
        raise ModelError(
            f"cannot estimate the Fisher information: got {len(x)} samples in micro-batches of {micro_batch}, need at "
            "least one full one"
        )
    weights = {key: net.parameter(key).detach() for key in net.weight_keys()}
    used = count * micro_batch
    inputs = torch.from_numpy(x[:used]).reshape(count, micro_batch, *x.shape[1:])
    targets = torch.from_numpy(y[:used]).reshape(count, micro_batch)
    training = net.training
    net.eval()
    try:
        sums = _squared_gradients(net, weights, inputs, targets)
    finally:
        net.train(training)
        net.pre_activations = {}  # they hold values of the last transformed pass
    found = {key: values.numpy() * micro_batch / count for key, values in sums.items()}
    wrong = [key for key, values in found.items() if not np.isfinite(values).all()]
    if wrong:
        raise ModelError(
            f"cannot estimate the Fisher information: got gradients of {wrong} that are not finite; try training that "
            "has not diverged"
        )
    return found


@torch.no_grad()  # vmap and grad differentiate inside of it; biases and the like need no graph
def _squared_gradients(
    net: TrainableGraph, weights: Mapping[str, Tensor], inputs: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """Sum over micro-batches (n, m, *shape) of the squared gradient of their mean loss, in double precision."""
    places = {id(parameter): place for place, parameter in net.named_parameters()}
    names = {key: places[id(net.parameter(key))] for key in weights}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits: Tensor = functional_call(net, {names[key]: value for key, value in values.items()}, (x,))
        return F.cross_entropy(logits, y)

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    chunk = max(1, _CHUNK_ENTRIES // sum(w.numel() for w in weights.values()))
    sums = {key: torch.zeros(w.shape, dtype=torch.float64) for key, w in weights.items()}
    for start in range(0, len(inputs), chunk):
        part = gradients(dict(weights), inputs[start : start + chunk], targets[start : start + chunk])
        for key, values in part.items():
            sums[key] += values.double().square().sum(0).cpu()
    return sums
