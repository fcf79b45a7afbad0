"""Exact folding: affine maps disappear into linear layers, quadratics become pure squares.

A quadratic a*x^2 + b*x + c with a != 0 is sgn(a) * (sqrt|a| * (x + b/2a))^2 + (c - b^2/4a) (completing the square).
The inner scale and shift go into the layer before, the sign and the constant into the layers after, and what is left is
one square: one product and one rescale, no plaintext.

Two primitives do the work. `push` (push.py) absorbs "this value is scale*v + shift" into everything that reads
it; `pull` (pull.py) makes a value's producers compute scale*v + shift. Both return None where that is not exact
(a constant before a zero-padded convolution, a value that something else reads too), and then the caller leaves the
graph as it was.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from he_runtime.model import Node

from ..graph import Graph
from .pull import only_reader, pull
from .push import full, push

__all__ = ["fold", "fold_affine", "fold_quadratics"]

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
    scale, shift = (full(graph.array(node, role), node.shape) for role in ("scale", "shift"))
    source = node.inputs[0]
    if only_reader(graph, source, node):
        folded = pull(graph, source, scale, shift)
        if folded is not None:
            return folded.without(node.name)
    folded = push(graph, node.name, scale, shift)
    return None if folded is None else folded.without(node.name)


def _complete_square(graph: Graph, node: Node) -> Graph | None:
    """a, b, c -> sgn(a), 0, c - b^2/4a, with the inner scale and shift pulled into the producer."""
    a, b, c = (graph.array(node, role) for role in "abc")
    if (np.abs(b) > 2 * MAX_CENTER * np.abs(a)).any() or not a.all() or not only_reader(graph, node.inputs[0], node):
        return None
    root = np.sqrt(np.abs(a))
    folded = pull(graph, node.inputs[0], full(root, node.shape), full(root * b / (2 * a), node.shape))
    if folded is None:
        return None
    return folded.with_arrays(node, {"a": np.sign(a), "b": np.zeros_like(b * a), "c": c - b**2 / (4 * a)})


def _release(graph: Graph, node: Node) -> Graph:
    """Push the sign and the constant of a completed square on; where only the sign can move, the constant stays."""
    a, b, c = (graph.array(node, role) for role in "abc")
    if b.any() or not (np.abs(a) == 1).all():
        return graph
    one, zero = np.array(1.0), np.array(0.0)
    folded = push(graph, node.name, full(a, node.shape), full(c, node.shape))
    if folded is not None:
        return folded.with_arrays(node, {"a": one, "b": zero, "c": zero})
    folded = push(graph, node.name, full(a, node.shape), full(zero, node.shape))
    return graph if folded is None else folded.with_arrays(node, {"a": one, "b": zero, "c": _compact(a * c)})


def _compact(values: Floats) -> Floats:
    """Shape () where all channels agree."""
    return (
        values.reshape(-1)[0].reshape(()) if values.ndim and bool((values == values.reshape(-1)[0]).all()) else values
    )
