"""Physical removal of channels: a network of fewer channels, not one of more zeros (EHAP, arXiv 2306.07030, step 4).

Rows and bias of the layer, coefficients per channel after it and the columns of its readers go; units.py says
which must go together. Removed means zero everywhere: the constant that a shift or an activation would have made of a
zero goes too. The slim network computes exactly what the network computes whose removed channels read zero in front of
every linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from he_runtime.model import Node

from ..graph import Graph, weight_keys
from ..masks import Bools
from ..trainable import Site, TrainableGraph
from .units import ChannelUnits

__all__ = ["kept_weights", "removable", "resolve", "slim", "slim_net"]

Array = npt.NDArray[Any]
_PER_CHANNEL_ATTRIBUTES = ("low", "high")  # of a polynomial: a number, or one per channel


def removable(graph: Graph) -> dict[str, Bools]:
    """Weight array -> which of its output channels (out,) could go at all; never any of the last layer's."""
    units = ChannelUnits(graph)
    return {key: ~units.fixed(labels) for key, labels in units.rows.items()}


def resolve(graph: Graph, keep: Mapping[str, Bools]) -> dict[str, Bools]:
    """Which output channels of every weight array really stay if those of `keep`, (out,) bools by array, are wanted.

    Arrays that `keep` leaves out keep all. A channel stays where anything in its unit is wanted, so this is a superset
    of `keep`. Raises ModelError on an unknown array, a wrong shape, an unknown op or a layer left empty.
    """
    units = ChannelUnits(graph)
    staying = units.staying(keep)
    return {key: staying[labels] for key, labels in units.rows.items()}


def kept_weights(graph: Graph, keep: Mapping[str, Bools]) -> dict[str, Bools]:
    """Weight array -> which of its entries `slim` leaves, in the array's shape before: kept rows and kept columns."""
    keys = list(weight_keys(graph))
    places = {key: np.arange(np.size(graph.arrays[key])).reshape(np.shape(graph.arrays[key])) for key in keys}
    left = _Cuts(graph, keep).arrays(places)
    return {key: np.isin(places[key], left[key]) for key in keys}


def slim(graph: Graph, keep: Mapping[str, Bools]) -> Graph:
    """The graph without the output channels that `keep` does not want, as far as `resolve` lets them go."""
    return _Cuts(graph, keep).graph()


def slim_net(net: TrainableGraph, keep: Mapping[str, Bools]) -> TrainableGraph:
    """`slim` of a network in training: weights (zero where masked), masks, blend and sites go over to a new one.

    Roundings and observers do not, since they may hold values per channel.
    """
    cuts = _Cuts(net.graph, keep)
    graph = replace(cuts.graph(), arrays=cuts.arrays(net.to_graph().arrays))
    slimmed = TrainableGraph(graph, {name: cuts.site(name, site) for name, site in net.sites.items()})
    masks = cuts.arrays({key: mask.numpy() for key, mask in net.masks.items()})
    slimmed.masks = {key: torch.from_numpy(mask) for key, mask in masks.items()}
    slimmed.blend = net.blend
    return slimmed.train(net.training)


class _Cuts:
    """What to take from every array, node and site of one graph."""

    def __init__(self, graph: Graph, keep: Mapping[str, Bools]) -> None:
        self._graph, self._units = graph, ChannelUnits(graph)
        self._staying = self._units.staying(keep)

    def graph(self) -> Graph:
        nodes = tuple(self._node(node) for node in self._graph.nodes)
        return replace(self._graph, nodes=nodes, arrays=self.arrays(self._graph.arrays))

    def arrays(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays, or masks in their shapes, without what is indexed by removed channels."""
        return {key: self._cut(key, np.asarray(array)) for key, array in values.items()}

    def site(self, name: str, site: Site) -> Site:
        stays = self._stays(name)
        return replace(site, unit=site.unit[stays]) if site.unit.shape == stays.shape else site

    def _stays(self, tensor: str) -> Bools:
        return self._staying[self._units.tensors[tensor]]

    def _cut(self, key: str, values: Array) -> Array:
        for axis, labels in self._units.axes.get(key, {}).items():
            values = np.compress(self._staying[labels], values, axis=axis)
        return values

    def _node(self, node: Node) -> Node:
        stays, attrs = self._stays(node.name), dict(node.attrs)
        for name in _PER_CHANNEL_ATTRIBUTES:
            if node.op == "polynomial" and np.shape(attrs[name]) == stays.shape:
                attrs[name] = np.compress(stays, attrs[name]).tolist()
        if attrs.get("groups", 1) > 1:  # whole groups went
            attrs["groups"] = int(attrs["groups"]) * int(stays.sum()) // len(stays)
        shape = (int(stays.sum()), *node.shape[1:]) if node.shape else node.shape
        return replace(node, shape=shape, attrs=attrs)
