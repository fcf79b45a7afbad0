"""The layer graph that preparation works on: the runtime's nodes, plus activations that are still to be replaced.

A `CompressedModel` may hold homomorphic operations only. Between capture and export a network still has its ReLUs, so
every step of preparation works on a `Graph`, which speaks the same vocabulary plus one op, `activation`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from he_runtime.errors import ModelError
from he_runtime.model import CompressedModel, InputSpec, Node, OutputSpec

__all__ = ["ACTIVATION", "LINEAR_OPS", "Graph", "weight_keys"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

ACTIVATION = "activation"  # attrs: function (see activations.py) and its parameters; one input, no arrays
LINEAR_OPS = frozenset({"dense", "conv2d"})


@dataclass(frozen=True)
class Graph:
    """Nodes in evaluation order with their arrays. Immutable: every edit returns a new graph.

    Shapes are per sample (no batch axis). Two nodes may name the same array: a module used twice.
    """

    input_name: str
    input_shape: tuple[int, ...]
    output: str
    nodes: tuple[Node, ...]
    arrays: Mapping[str, Array] = field(repr=False)

    def node(self, name: str) -> Node:
        for candidate in self.nodes:
            if candidate.name == name:
                return candidate
        raise ModelError(f"cannot find node {name!r}: need one of {[n.name for n in self.nodes]}; try Graph.nodes")

    def shape_of(self, name: str) -> tuple[int, ...]:
        return self.input_shape if name == self.input_name else self.node(name).shape

    def array(self, node: Node, role: str) -> Floats:
        """One of the node's arrays in float64; zeros in the shape of a bias where the node has none."""
        key = node.arrays.get(role)
        if key is not None:
            return np.asarray(self.arrays[key], dtype=np.float64)
        if role == "bias":
            return np.zeros(len(self.arrays[node.arrays["weight"]]))
        raise ModelError(f"cannot read {role!r} of node {node.name!r}: it has {sorted(node.arrays)}")

    def consumers(self, name: str) -> list[Node]:
        """Nodes that read `name`, each once, in order."""
        return [n for n in self.nodes if name in n.inputs]

    def users_of_array(self, key: str) -> list[Node]:
        return [n for n in self.nodes if key in n.arrays.values()]

    def positions(self) -> dict[str, int]:
        """Weight array -> how many output positions each of its entries serves, over all layers that use it."""
        counts: Counter[str] = Counter()
        for node in self.nodes:
            if node.op in LINEAR_OPS:
                counts[node.arrays["weight"]] += math.prod(node.shape[1:])
        return dict(counts)

    def with_node(self, node: Node) -> Graph:
        """The graph with the node of the same name replaced."""
        return replace(self, nodes=tuple(node if n.name == node.name else n for n in self.nodes))

    def with_arrays(self, node: Node, values: Mapping[str, Array]) -> Graph:
        """The graph with some of one node's arrays replaced; arrays it shares with other nodes are left to those."""
        arrays, names = dict(self.arrays), dict(node.arrays)
        for role, value in values.items():
            key = f"{node.name}.{role}"
            while any(user.name != node.name for user in self.users_of_array(key)):
                key += "_"
            arrays[key], names[role] = value, key
        edited = replace(self, arrays=arrays).with_node(replace(node, arrays=names))
        return edited._without_unused_arrays()

    def without(self, name: str) -> Graph:
        """The graph with a one-input node removed; its readers read its input instead."""
        source = self.node(name).inputs[0]
        nodes = tuple(
            replace(n, inputs=tuple(source if i == name else i for i in n.inputs)) for n in self.nodes if n.name != name
        )
        output = source if self.output == name else self.output
        return replace(self, nodes=nodes, output=output)._without_unused_arrays()

    def _without_unused_arrays(self) -> Graph:
        used = {key for n in self.nodes for key in n.arrays.values()}
        return replace(self, arrays={k: v for k, v in self.arrays.items() if k in used})

    def activations(self) -> list[Node]:
        """The nodes that still have to be replaced before export."""
        return [n for n in self.nodes if n.op == ACTIVATION]

    def to_model(
        self,
        name: str,
        input_spec: InputSpec,
        labels: Sequence[str] = (),
        post_processing: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> CompressedModel:
        """The frozen artifact; ModelError where an activation is left. Post-processing defaults to argmax with labels."""
        processing = post_processing or ("argmax" if labels else "none")
        return CompressedModel(
            name=name,
            input=replace(input_spec, name=self.input_name, shape=self.input_shape),
            output=OutputSpec(self.output, tuple(labels), processing),  # type: ignore[arg-type]
            nodes=self.nodes,
            arrays=dict(self.arrays),
            metadata=dict(metadata or {}),
        )

    @classmethod
    def from_model(cls, model: CompressedModel) -> Graph:
        """The graph of an artifact with quantized arrays made real and statistics dropped."""
        used = {key for n in model.nodes for key in n.arrays.values()}
        arrays = {
            key: np.asarray(values, dtype=np.float64) * model.quantization[key] if key in model.quantization else values
            for key, values in model.arrays.items()
            if key in used
        }
        return cls(model.input.name, tuple(model.input.shape), model.output.node, model.nodes, arrays)


def weight_keys(model: Graph | CompressedModel) -> dict[str, str]:
    """Weight array -> the first layer that uses it, in evaluation order."""
    found: dict[str, str] = {}
    for node in model.nodes:
        if node.op in LINEAR_OPS:
            found.setdefault(node.arrays["weight"], node.name)
    return found
