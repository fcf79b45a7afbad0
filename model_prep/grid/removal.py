"""Networks without some of their activations: the nearest line stands in, and the layers on either side merge.

An activation costs its levels in every operation before it, and often a ring of twice the size: where a budget is tight,
the network that is left without one may keep weights that explain more than the activation did. (Removal
of whole activations saves garbled circuits in Jha et al., arXiv 2103.01396; lines in their place, Cho et al., arXiv 2202.02340.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..polynomials.approximation import by_channel, fit_line
from ..polynomials.merging import Cost, simplified
from ..trainable import TrainableGraph
from .explained import outputs_of
from .layer import loss_of

__all__ = ["Line", "lines", "without"]

Floats = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Line:
    """What stands in for an activation: `scale` and `shift` (channels,), and -log of the share of its variance explained."""

    scale: Floats
    shift: Floats
    lost: float


def lines(net: TrainableGraph, x: Float32) -> dict[str, Line]:
    """Of every polynomial that replaced an activation, the line nearest to it in each channel, on inputs x (n, *shape).

    What the user wrote as a polynomial is the user's, and stays.
    """
    nodes = [net.graph.node(name) for name in net.sites if net.graph.node(name).op in ("quadratic", "polynomial")]
    seen = outputs_of(net, {name for node in nodes for name in (*node.inputs, node.name)}, x)
    return {node.name: _nearest(by_channel(seen[node.inputs[0]]), by_channel(seen[node.name])) for node in nodes}


def without(net: TrainableGraph, removed: Mapping[str, Line], x: Float32, cost: Cost) -> TrainableGraph:
    """The network with lines for these sites, folded and merged where `cost` says that it pays; masks are not taken along."""
    graph = net.to_graph()
    for name, line in removed.items():
        node = replace(graph.node(name), op="affine", attrs={}, arrays={})
        graph = graph.with_node(node).with_arrays(node, {"scale": line.scale, "shift": line.shift})
    kept = {name: site for name, site in net.sites.items() if name not in removed}
    return simplified(TrainableGraph(graph, kept), x, cost)


def _nearest(inputs: Floats, outputs: Floats) -> Line:
    scale, shift = fit_line(inputs, outputs)
    missed = outputs - scale[:, None] * inputs - shift[:, None]
    return Line(
        scale, shift, loss_of(float(outputs.var(1).sum() - (missed**2).mean(1).sum()), float(outputs.var(1).sum()))
    )
