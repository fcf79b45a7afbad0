"""The layer whose rows are the network's outputs: methods that remove whole rows leave it its rows."""

from __future__ import annotations

from ..graph import LINEAR_OPS, Graph

__all__ = ["output_layer"]

_VIEWS = ("reshape", "affine", "avg_pool2d")


def output_layer(graph: Graph) -> str | None:
    """Its weight array; None where the output comes from another op, such as a sum of branches."""
    name = graph.output
    while name != graph.input_name:
        node = graph.node(name)
        if node.op in LINEAR_OPS:
            return node.arrays["weight"]
        if node.op not in _VIEWS:
            return None
        name = node.inputs[0]
    return None
