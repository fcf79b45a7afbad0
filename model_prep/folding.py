"""Exact folding: affine maps disappear into linear layers, quadratics become pure squares.

A quadratic a*x^2 + b*x + c with a != 0 is sgn(a) * (sqrt|a| * (x + b/2a))^2 + (c - b^2/4a) (completing the square;
ckks-compression.md, section D). The inner scale and shift go into the layer before, the sign and the constant into the
layers after, and what is left is one square: one product and one rescale, no plaintext.

Two primitives do the work. `push` absorbs "this value is scale*v + shift" into everything that reads it; `pull` makes a
value's producers compute scale*v + shift. Both return None where that is not exact (a constant before a zero-padded
convolution, a value that something else reads too), and then the caller leaves the graph as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from he_runtime.chebyshev import interval
from he_runtime.model import Node

from .graph import LINEAR_OPS, Graph

__all__ = ["fold", "fold_affine", "fold_quadratics", "pull", "push"]

Floats = npt.NDArray[np.float64]

# Beyond this |b/2a| the square and the constant cancel so far that CKKS noise would grow by more than five bits.
MAX_CENTER = 32.0


def fold(graph: Graph) -> Graph:
    """Every exact folding: affine maps first, then completed squares. Values are unchanged up to rounding."""
    return fold_quadratics(fold_affine(graph))


def fold_affine(graph: Graph) -> Graph:
    """Absorb affine nodes (batch norms, constants) into a neighbour wherever that is exact."""
    for node in graph.nodes:
        if node.op == "affine":
            graph = _absorb(graph, node) or graph
    return graph


def fold_quadratics(graph: Graph) -> Graph:
    """Complete the square of every quadratic wherever that is exact; a constant that cannot move stays in its node."""
    for name in [n.name for n in graph.nodes if n.op == "quadratic"]:
        graph = _complete_square(graph, graph.node(name)) or graph
        graph = _release(graph, graph.node(name))
    return graph


def _absorb(graph: Graph, node: Node) -> Graph | None:
    scale, shift = (_full(graph.array(node, role), node.shape) for role in ("scale", "shift"))
    source = node.inputs[0]
    if _only_reader(graph, source, node):
        folded = pull(graph, source, scale, shift)
        if folded is not None:
            return folded.without(node.name)
    folded = push(graph, node.name, scale, shift)
    return None if folded is None else folded.without(node.name)


def _complete_square(graph: Graph, node: Node) -> Graph | None:
    """a, b, c -> sgn(a), 0, c - b^2/4a, with the inner scale and shift pulled into the producer."""
    a, b, c = (graph.array(node, role) for role in "abc")
    if (np.abs(b) > 2 * MAX_CENTER * np.abs(a)).any() or not a.all() or not _only_reader(graph, node.inputs[0], node):
        return None
    root = np.sqrt(np.abs(a))
    folded = pull(graph, node.inputs[0], _full(root, node.shape), _full(root * b / (2 * a), node.shape))
    if folded is None:
        return None
    return folded.with_arrays(node, {"a": np.sign(a), "b": np.zeros_like(b * a), "c": c - b**2 / (4 * a)})


def _release(graph: Graph, node: Node) -> Graph:
    """Push the sign and the constant of a completed square on; where only the sign can move, the constant stays."""
    a, b, c = (graph.array(node, role) for role in "abc")
    if b.any() or not (np.abs(a) == 1).all():
        return graph
    one, zero = np.array(1.0), np.array(0.0)
    folded = push(graph, node.name, _full(a, node.shape), _full(c, node.shape))
    if folded is not None:
        return folded.with_arrays(node, {"a": one, "b": zero, "c": zero})
    folded = push(graph, node.name, _full(a, node.shape), _full(zero, node.shape))
    return graph if folded is None else folded.with_arrays(node, {"a": one, "b": zero, "c": _compact(a * c)})


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
    factor, offset = _per_channel(scale), _per_channel(shift)
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
    factor, offset = _per_channel(scale), _per_channel(shift)
    if factor is None or offset is None or (offset.any() and any(node.attrs["padding"])):
        return None
    return push(graph, node.name, _full(factor, node.shape), _full(offset, node.shape))


def _push_affine(graph: Graph, node: Node, _: str, scale: Floats, shift: Floats) -> Graph | None:
    factor, offset = _per_channel(scale), _per_channel(shift)
    if factor is None or offset is None:
        return None
    s, t = graph.array(node, "scale"), graph.array(node, "shift")
    return graph.with_arrays(node, {"scale": s * factor, "shift": s * offset + t})


def _push_quadratic(graph: Graph, node: Node, _: str, scale: Floats, shift: Floats) -> Graph | None:
    factor, offset = _per_channel(scale), _per_channel(shift)
    if factor is None or offset is None:
        return None
    a, b, c = (graph.array(node, role) for role in "abc")
    changed = {"a": a * factor**2, "b": (2 * a * offset + b) * factor, "c": a * offset**2 + b * offset + c}
    return graph.with_arrays(node, changed)


def _push_polynomial(graph: Graph, node: Node, _: str, scale: Floats, shift: Floats) -> Graph | None:
    """The interval moves to where scale*x + shift comes from; a negative scale turns it round, and odd terms with it."""
    factor, offset = _per_channel(scale), _per_channel(shift)
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
    factor, offset = _per_channel(scale), _per_channel(shift)
    if factor is None or offset is None:
        return None
    weight = graph.array(node, "weight")
    changed = {"weight": weight * factor.reshape((-1,) + (1,) * (weight.ndim - 1))}
    if offset.any() or "bias" in node.arrays:
        changed["bias"] = graph.array(node, "bias") * factor + offset
    return graph.with_arrays(node, changed)


def _pull_affine(graph: Graph, node: Node, scale: Floats, shift: Floats) -> Graph | None:
    factor, offset = _per_channel(scale), _per_channel(shift)
    if factor is None or offset is None:
        return None
    s, t = graph.array(node, "scale"), graph.array(node, "shift")
    return graph.with_arrays(node, {"scale": s * factor, "shift": t * factor + offset})


def _pull_quadratic(graph: Graph, node: Node, scale: Floats, shift: Floats) -> Graph | None:
    factor, offset = _per_channel(scale), _per_channel(shift)
    if factor is None or offset is None:
        return None
    a, b, c = (graph.array(node, role) for role in "abc")
    return graph.with_arrays(node, {"a": a * factor, "b": b * factor, "c": c * factor + offset})


def _pull_polynomial(graph: Graph, node: Node, scale: Floats, shift: Floats) -> Graph | None:
    """Either basis starts with the constant one."""
    factor, offset = _per_channel(scale), _per_channel(shift)
    if factor is None or offset is None:
        return None
    rows = factor[:, None] * graph.array(node, "coefficients")
    rows[:, 0] += offset
    return graph.with_arrays(node, {"coefficients": rows})


def _pull_reshape(graph: Graph, node: Node, scale: Floats, shift: Floats) -> Graph | None:
    source = node.inputs[0]
    shape = graph.shape_of(source)
    return (
        pull(graph, source, scale.reshape(shape), shift.reshape(shape)) if _only_reader(graph, source, node) else None
    )


def _pull_avg_pool2d(graph: Graph, node: Node, scale: Floats, shift: Floats) -> Graph | None:
    factor, offset, source = _per_channel(scale), _per_channel(shift), node.inputs[0]
    if factor is None or offset is None or (offset.any() and any(node.attrs["padding"])):
        return None
    shape = graph.shape_of(source)
    return (
        pull(graph, source, _full(factor, shape), _full(offset, shape)) if _only_reader(graph, source, node) else None
    )


def _pull_add(graph: Graph, node: Node, scale: Floats, shift: Floats) -> Graph | None:
    """Both terms take the factor, one of them the constant; each must be read by this sum alone."""
    left, right = node.inputs
    if left == right or not all(_only_reader(graph, name, node) for name in node.inputs):
        return None
    folded = pull(graph, left, scale, shift)
    return None if folded is None else pull(folded, right, scale, np.zeros_like(shift))


_Push = Callable[[Graph, Node, str, Floats, Floats], "Graph | None"]
_Pull = Callable[[Graph, Node, Floats, Floats], "Graph | None"]

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
_PULL: dict[str, _Pull] = {
    **dict.fromkeys(LINEAR_OPS, _pull_linear),
    "affine": _pull_affine,
    "quadratic": _pull_quadratic,
    "polynomial": _pull_polynomial,
    "reshape": _pull_reshape,
    "avg_pool2d": _pull_avg_pool2d,
    "add": _pull_add,
}


def _only_reader(graph: Graph, name: str, node: Node) -> bool:
    return (
        graph.output != name and [n.name for n in graph.consumers(name)] == [node.name] and node.inputs.count(name) == 1
    )


def _full(values: Floats, shape: tuple[int, ...]) -> Floats:
    """Coefficients per channel (or of shape ()) spread over a whole output."""
    column = values.reshape(values.shape + (1,) * (len(shape) - 1)) if values.ndim else values
    return np.array(np.broadcast_to(column, shape), dtype=np.float64)


def _per_channel(values: Floats) -> Floats | None:
    """(channels, ...) -> (channels,), or None where a channel's positions differ."""
    flat = values.reshape(len(values), -1)
    return flat[:, 0].copy() if bool((flat == flat[:, :1]).all()) else None


def _compact(values: Floats) -> Floats:
    """Shape () where all channels agree."""
    return (
        values.reshape(-1)[0].reshape(()) if values.ndim and bool((values == values.reshape(-1)[0]).all()) else values
    )
