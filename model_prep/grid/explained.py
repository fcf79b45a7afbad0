"""What the weights that stay can still explain of their layers' outputs: how whole divisions of a budget are compared.

Saliency is right for small changes, one step of a descent at a time. Where nine weights of ten go, those that stay take over
from them, as far as the layer's inputs are correlated: the share of an output's variance that least squares over the kept
inputs explain. (Layer-wise reconstruction as in Dong et al., arXiv 1705.07565; Frantar and Alistarh, arXiv 2301.00774.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from he_runtime.model import Node

from ..graph import LINEAR_OPS, Graph
from ..trainable import TrainableGraph
from .layer import Choice, loss_of

__all__ = ["explained_share", "input_covariances", "outputs_of", "unexplained"]

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
_MOST_INPUTS = 4096
_BATCH = 128
_RIDGE = 1e-3  # of the mean variance of an input: training reaches no closer, and some inputs never vary


def explained_share(covariance: Floats, weight: Floats, keep: Bools) -> float:
    """The share of the outputs' variance that is left when each row (out, in), or kernel (out, in, h, w), is fitted anew to its kept inputs.

    `covariance` (in, in) is that of the layer's inputs; biases take up the mean.
    """
    weight, keep = weight.reshape(len(weight), -1), keep.reshape(len(keep), -1)
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
def outputs_of(net: TrainableGraph, names: Collection[str], x: npt.NDArray[np.float32]) -> dict[str, Floats]:
    """What these nodes (or the input) hold on x (n, *shape); the network is left as it was."""
    seen: dict[str, Tensor] = {net.graph.input_name: torch.from_numpy(x)}

    def keep(name: str) -> Callable[[Tensor], Tensor]:
        def see(values: Tensor) -> Tensor:
            seen[name] = values
            return values

        return see

    training, observers = net.training, net.observers
    net.observers = {name: keep(name) for name in names}
    try:
        net.eval()(torch.from_numpy(x))
    finally:
        net.observers = observers
        net.train(training)
        net.pre_activations = {}
    return {name: seen[name].double().numpy() for name in names}


def input_covariances(net: TrainableGraph, x: npt.NDArray[np.float32]) -> dict[str, Floats]:
    """Array name -> covariance (in, in) of what the outputs of dense layers and convolutions are sums over, on x (n, *shape).

    Left out are grouped convolutions and layers with more than 4,096 such inputs, whose covariances would take gigabytes.
    """
    nodes = [node for node in net.graph.nodes if node.op in LINEAR_OPS and _inputs(net.graph, node) <= _MOST_INPUTS]
    seen = outputs_of(net, {node.inputs[0] for node in nodes}, x)
    found: dict[str, Floats] = {}
    for node in nodes:
        key = node.arrays["weight"]
        covariance = _covariance(net.graph, node, seen[node.inputs[0]])
        found[key] = found[key] + covariance if key in found else covariance
    return found


def _inputs(graph: Graph, node: Node) -> float:
    """How many values an output is a sum over; no finite number where that differs from output to output."""
    return math.inf if node.attrs.get("groups", 1) != 1 else graph.array(node, "weight")[0].size


def _covariance(graph: Graph, node: Node, values: Floats) -> Floats:
    """Of the rows of a dense layer's input, or of a convolution's windows, a batch at a time."""
    size = int(_inputs(graph, node))
    count, total, products = 0, np.zeros(size), np.zeros((size, size))
    for start in range(0, len(values), _BATCH):
        rows = values[start : start + _BATCH]
        if node.op == "conv2d":
            kernel, a = graph.array(node, "weight").shape[2:], node.attrs
            windows = F.unfold(torch.from_numpy(rows), kernel, a["dilation"], a["padding"], a["stride"])
            rows = windows.movedim(1, 2).numpy()
        rows = rows.reshape(-1, size)
        count, total, products = count + len(rows), total + rows.sum(0), products + rows.T @ rows
    mean = total / count
    return np.asarray(products / count - np.outer(mean, mean))


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
