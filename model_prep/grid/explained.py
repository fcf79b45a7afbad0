"""What the weights that stay can still explain of their layers' outputs: how whole divisions of a budget are compared.

Saliency is right for small changes, one step of a descent at a time. Where nine weights of ten go, those that stay take over
from them, as far as the layer's inputs are correlated: the share of an output's variance that least squares over the kept
inputs explain. (Layer-wise reconstruction as in Dong et al., arXiv 1705.07565; Frantar and Alistarh, arXiv 2301.00774.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..trainable import TrainableGraph
from .layer import Choice, loss_of

__all__ = ["explained_share", "input_covariances", "unexplained"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
_RIDGE = 1e-3  # of the mean variance of an input: training reaches no closer, and some inputs never vary


def explained_share(covariance: Floats, weight: Floats, keep: Bools) -> float:
    """The share of the outputs' variance that is left when each row (out, in) is fitted anew to its kept inputs.

    `covariance` (in, in) is that of the layer's inputs; biases take up the mean.
    """
    ridge = _RIDGE * float(np.trace(covariance)) / len(covariance)
    whole = ((weight @ covariance) * weight).sum(axis=1)
    total, left = float(whole.sum()), np.zeros(len(weight))
    if total <= 0:  # outputs that do not vary lose nothing
        return 1.0
    for row, kept in enumerate(map(np.flatnonzero, keep)):
        if len(kept) == len(covariance):
            left[row] = whole[row]
        elif len(kept):
            shared = covariance[kept] @ weight[row]
            normal = covariance[np.ix_(kept, kept)] + ridge * np.eye(len(kept))
            left[row] = shared @ np.linalg.solve(normal, shared)
    return float(np.minimum(left, whole).sum()) / total


@torch.no_grad()
def input_covariances(net: TrainableGraph, x: npt.NDArray[np.float32]) -> dict[str, Floats]:
    """Array name -> covariance (in, in) of what its dense layers read on x (n, *shape); other layers are left out."""
    dense = [node for node in net.graph.nodes if node.op == "dense"]
    seen: dict[str, Tensor] = {net.graph.input_name: torch.from_numpy(x)}

    def keep(name: str) -> Callable[[Tensor], Tensor]:
        def see(values: Tensor) -> Tensor:
            seen[name] = values
            return values

        return see

    training, observers = net.training, net.observers
    net.observers = {node.inputs[0]: keep(node.inputs[0]) for node in dense}
    try:
        net.eval()(torch.from_numpy(x))
    finally:
        net.observers = observers
        net.train(training)
        net.pre_activations = {}
    found: dict[str, Floats] = {}
    for node in dense:
        values = seen[node.inputs[0]].double().numpy()
        covariance = np.atleast_2d(np.cov(values.reshape(-1, values.shape[-1]), rowvar=False, ddof=0))
        key = node.arrays["weight"]
        found[key] = found[key] + covariance if key in found else covariance
    return found


def unexplained(
    chosen: Mapping[str, Choice], weights: Mapping[str, Floats], covariances: Mapping[str, Floats]
) -> float:
    """-log of the product of what layers still explain; a layer without a covariance counts by its saliency."""
    return sum(
        loss_of(explained_share(covariances[key], weights[key], choice.keep), 1.0)
        if key in covariances
        else choice.lost
        for key, choice in chosen.items()
    )
