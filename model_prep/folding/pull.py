"""Folding backward: what makes a value takes a scale and a shift of it in (folding.py)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from he_runtime.model import Node

from ..graph import LINEAR_OPS, Graph
from .push import full, per_channel

__all__ = ["only_reader", "pull"]

Floats = npt.NDArray[np.float64]

_Pull = Callable[[Graph, Node, Floats, Floats], "Graph | None"]


def pull(graph: Graph, name: str, scale: Floats, shift: Floats) -> Graph | None:
    """The graph in which node `name` yields scale*v + shift instead of v; its readers must expect that.

    `scale` and `shift` have the shape of the node's output. None where its producers cannot do it exactly.
    """
    if name == graph.input_name:
        return None
    node = graph.node(name)
    absorb = _PULL.get(node.op)
    return None if absorb is None else absorb(graph, node, scale, shift)


def _pull_linear(graph: Graph, node: Node, scale: Floats, shift: Floats) -> Graph | None:
    factor, offset = per_channel(scale), per_channel(shift)
    if factor is None or offset is None:
        return None
    weight = graph.array(node, "weight")
    changed = {"weight": weight * factor.reshape((-1,) + (1,) * (weight.ndim - 1))}
    if offset.any() or "bias" in node.arrays:
        changed["bias"] = graph.array(node, "bias") * factor + offset
    return graph.with_arrays(node, changed)


def _pull_affine(graph: Graph, node: Node, scale: Floats, shift: Floats) -> Graph | None:
    factor, offset = per_channel(scale), per_channel(shift)
    if factor is None or offset is None:
        return None
    s, t = graph.array(node, "scale"), graph.array(node, "shift")
    return graph.with_arrays(node, {"scale": s * factor, "shift": t * factor + offset})


def _pull_quadratic(graph: Graph, node: Node, scale: Floats, shift: Floats) -> Graph | None:
    factor, offset = per_channel(scale), per_channel(shift)
    if factor is None or offset is None:
        return None
    a, b, c = (graph.array(node, role) for role in "abc")
    return graph.with_arrays(node, {"a": a * factor, "b": b * factor, "c": c * factor + offset})


def _pull_polynomial(graph: Graph, node: Node, scale: Floats, shift: Floats) -> Graph | None:
    """Either basis starts with the constant one."""
    factor, offset = per_channel(scale), per_channel(shift)
    if factor is None or offset is None:
        return None
    rows = factor[:, None] * graph.array(node, "coefficients")
    rows[:, 0] += offset
    return graph.with_arrays(node, {"coefficients": rows})


def _pull_reshape(graph: Graph, node: Node, scale: Floats, shift: Floats) -> Graph | None:
    source = node.inputs[0]
    shape = graph.shape_of(source)
    return pull(graph, source, scale.reshape(shape), shift.reshape(shape)) if only_reader(graph, source, node) else None


def _pull_avg_pool2d(graph: Graph, node: Node, scale: Floats, shift: Floats) -> Graph | None:
    factor, offset, source = per_channel(scale), per_channel(shift), node.inputs[0]
    if factor is None or offset is None or (offset.any() and any(node.attrs["padding"])):
        return None
    shape = graph.shape_of(source)
    return pull(graph, source, full(factor, shape), full(offset, shape)) if only_reader(graph, source, node) else None


def _pull_add(graph: Graph, node: Node, scale: Floats, shift: Floats) -> Graph | None:
    """Both terms take the factor, one of them the constant; each must be read by this sum alone."""
    left, right = node.inputs
    if left == right or not all(only_reader(graph, name, node) for name in node.inputs):
        return None
    folded = pull(graph, left, scale, shift)
    return None if folded is None else pull(folded, right, scale, np.zeros_like(shift))


_PULL: dict[str, _Pull] = {
    **dict.fromkeys(LINEAR_OPS, _pull_linear),
    "affine": _pull_affine,
    "quadratic": _pull_quadratic,
    "polynomial": _pull_polynomial,
    "reshape": _pull_reshape,
    "avg_pool2d": _pull_avg_pool2d,
    "add": _pull_add,
}


def only_reader(graph: Graph, name: str, node: Node) -> bool:
    return (
        graph.output != name and [n.name for n in graph.consumers(name)] == [node.name] and node.inputs.count(name) == 1
    )
