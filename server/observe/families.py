"""Layer families: what kinds of work an evaluation's time goes into, whatever the layers of a model are called."""

from __future__ import annotations

from collections.abc import Iterable

from he_runtime.model import CompressedModel, Node

__all__ = ["FAMILIES", "OTHER", "layer_families"]

OTHER = "other"
# Of a kind that the planner merges into its neighbours, the first of these kinds names the merged layer's family.
_MERGING = {
    "conv2d": "convolution",
    "dense": "linear",
    "avg_pool2d": "pooling",
    "affine": "normalization",
    "concat": "shape",
    "reshape": "shape",
}
_APART = {
    "quadratic": "activation",
    "polynomial": "activation",
    "add": "elementwise",
    "multiply": "elementwise",
    "matmul": "matmul",
}
FAMILIES = (*dict.fromkeys((*_MERGING.values(), *_APART.values())), OTHER)


def layer_families(model: CompressedModel, layers: Iterable[str]) -> dict[str, str]:
    """The family of each of a plan's `layers`.

    The planner merges consecutive linear layers under the name of the last: of a convolution and the normalization
    after it, only the latter's name is in the plan, and the family is the convolution's.
    """
    named = set(layers)
    nodes = {node.name: node for node in model.nodes}
    return {layer: _family(layer, nodes, named) for layer in named}


def _family(layer: str, nodes: dict[str, Node], named: set[str]) -> str:
    node = nodes.get(layer)
    if node is None:
        return OTHER
    if node.op in _APART:
        return _APART[node.op]
    kinds, ahead = {node.op}, list(node.inputs)
    while ahead:
        before = nodes.get(ahead.pop())
        if before is not None and before.name not in named and before.op in _MERGING:
            kinds.add(before.op)
            ahead += before.inputs
    return next((family for kind, family in _MERGING.items() if kind in kinds), OTHER)
