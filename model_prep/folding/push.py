"""Folding forward: what reads a value absorbs a scale and a shift of it (folding.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from he_runtime.chebyshev import interval
from he_runtime.model import Node

from ..graph import Graph

__all__ = ["full", "per_channel", "push"]

Floats = npt.NDArray[np.float64]

_Push = Callable[[Graph, Node, str, Floats, Floats], "Graph | None"]


def push(graph: Graph, name: str, scale: Floats, shift: Floats) -> Graph | None:
    """The graph in which `name` yields v and every reader behaves as if it yielded scale*v + shift.

    `scale` and `shift` have the shape of the node's output. None where a reader cannot absorb them exactly.
    """
    if graph.output == name:
        return None
    for reader in graph.consumers(name):
        absorb = _PUSH.get(reader.op)
        # Sequential, because two paths may meet again and each must then leave its own contribution.
        step = None if absorb is None else absorb(graph, graph.node(reader.name), name, scale, shift)
        if step is None:
            return None
        graph = step
    return graph


def _push_dense(graph: Graph, node: Node, _: str, scale: Floats, shift: Floats) -> Graph | None:
    if scale.ndim != 1:
        return None
    weight = graph.array(node, "weight")
    changed = {"weight": weight * scale}
    if shift.any() or "bias" in node.arrays:
        changed["bias"] = graph.array(node, "bias") + weight @ shift
    return graph.with_arrays(node, changed)


def _push_conv2d(graph: Graph, node: Node, _: str, scale: Floats, shift: Floats) -> Graph | None:
    factor, offset = per_channel(scale), per_channel(shift)
    if factor is None or offset is None or (offset.any() and any(node.attrs["padding"])):
        return None
    weight, groups = graph.array(node, "weight"), int(node.attrs["groups"])
    # Output channels of group g read input channels g*width .. (g+1)*width, so each row gets its own group's factors.
    rows = np.arange(len(weight)) * groups // len(weight)
    by_row = factor.reshape(groups, -1)[rows]
    changed = {"weight": weight * by_row[:, :, None, None]}
    if offset.any() or "bias" in node.arrays:
        moved = np.einsum("ocij,oc->o", weight, offset.reshape(groups, -1)[rows])
        changed["bias"] = graph.array(node, "bias") + moved
    return graph.with_arrays(node, changed)


def _push_reshape(graph: Graph, node: Node, _: str, scale: Floats, shift: Floats) -> Graph | None:
    return push(graph, node.name, scale.reshape(node.shape), shift.reshape(node.shape))


def _push_avg_pool2d(graph: Graph, node: Node, _: str, scale: Floats, shift: Floats) -> Graph | None:
    factor, offset = per_channel(scale), per_channel(shift)
    if factor is None or offset is None or (offset.any() and any(node.attrs["padding"])):
        return None
    return push(graph, node.name, full(factor, node.shape), full(offset, node.shape))


def _push_affine(graph: Graph, node: Node, _: str, scale: Floats, shift: Floats) -> Graph | None:
    factor, offset = per_channel(scale), per_channel(shift)
    if factor is None or offset is None:
        return None
    s, t = graph.array(node, "scale"), graph.array(node, "shift")
    return graph.with_arrays(node, {"scale": s * factor, "shift": s * offset + t})


def _push_quadratic(graph: Graph, node: Node, _: str, scale: Floats, shift: Floats) -> Graph | None:
    factor, offset = per_channel(scale), per_channel(shift)
    if factor is None or offset is None:
        return None
    a, b, c = (graph.array(node, role) for role in "abc")
    changed = {"a": a * factor**2, "b": (2 * a * offset + b) * factor, "c": a * offset**2 + b * offset + c}
    return graph.with_arrays(node, changed)


def _push_polynomial(graph: Graph, node: Node, _: str, scale: Floats, shift: Floats) -> Graph | None:
    """The interval moves to where scale*x + shift comes from; a negative scale turns it round, and odd terms with it."""
    factor, offset = per_channel(scale), per_channel(shift)
    if factor is None or offset is None or not factor.all() or node.attrs["basis"] != "chebyshev":
        return None
    rows, (low, high) = graph.array(node, "coefficients"), interval(node)
    rows = np.where(factor[:, None] < 0, (-1.0) ** np.arange(rows.shape[-1]), 1.0) * rows
    ends = np.stack([(low - offset) / factor, (high - offset) / factor])
    attrs = {**node.attrs, "low": ends.min(0).tolist(), "high": ends.max(0).tolist()}
    return graph.with_arrays(replace(node, attrs=attrs), {"coefficients": rows})


def _push_add(graph: Graph, node: Node, name: str, scale: Floats, shift: Floats) -> Graph | None:
    """A sum passes a constant on, but a factor only if both terms had it, which is not known here."""
    if (scale != 1).any() or node.inputs.count(name) != 1:
        return None
    return push(graph, node.name, scale, shift)


_PUSH: dict[str, _Push] = {
    "dense": _push_dense,
    "conv2d": _push_conv2d,
    "reshape": _push_reshape,
    "avg_pool2d": _push_avg_pool2d,
    "affine": _push_affine,
    "quadratic": _push_quadratic,
    "polynomial": _push_polynomial,
    "add": _push_add,
}


def full(values: Floats, shape: tuple[int, ...]) -> Floats:
    """Coefficients per channel (or of shape ()) spread over a whole output."""
    column = values.reshape(values.shape + (1,) * (len(shape) - 1)) if values.ndim else values
    return np.array(np.broadcast_to(column, shape), dtype=np.float64)


def per_channel(values: Floats) -> Floats | None:
    """(channels, ...) -> (channels,), or None where a channel's positions differ."""
    flat = values.reshape(len(values), -1)
    return flat[:, 0].copy() if bool((flat == flat[:, :1]).all()) else None
