"""Hidden channels of a network in training, reordered: the function stays, the diagonals change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from he_runtime.model import InputSpec

from ..channels.permutation import Reordering, reordering
from ..trainable import TrainableGraph
from .budget import Budget

__all__ = ["moved_net", "reordering_for"]

Floats = npt.NDArray[np.float64]


def reordering_for(net: TrainableGraph, energy: Mapping[str, Floats], budget: Budget, target_ms: float) -> Reordering:
    """The order in which the masks of a budget keep most saliency."""
    graph = net.to_graph()
    model = graph.to_model("reordered", InputSpec("", graph.input_shape))

    def masks(now: Mapping[str, Floats]) -> dict[str, npt.NDArray[np.bool_]]:
        return {key: choice.keep for key, choice in budget.masks(now, target_ms).items()}

    return reordering(model, {key: energy[key] for key in budget.options}, masks)


def moved_net(net: TrainableGraph, order: Reordering) -> TrainableGraph:
    """The same function with its channels in the new order; masks and the units of polynomial sites go with them."""
    graph = net.to_graph()
    arrays = order.applied(graph.arrays)
    units = {
        graph.node(name).arrays["a"]: site.unit for name, site in net.sites.items() if "a" in graph.node(name).arrays
    }
    units = order.applied(units)
    sites = {
        name: replace(site, unit=units.get(graph.node(name).arrays.get("a", ""), site.unit))
        for name, site in net.sites.items()
    }
    moved = TrainableGraph(replace(graph, arrays=arrays), sites)
    moved.blend = net.blend
    masks = order.applied({key: mask.numpy() for key, mask in net.masks.items()})
    moved.masks = {key: torch.from_numpy(np.ascontiguousarray(mask)) for key, mask in masks.items()}
    return moved
