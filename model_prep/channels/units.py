"""Which channels of a graph can only go together: what physical removal (slimming.py) has to respect.

A unit joins the channels that a sum or a product combines, a channel of an image and its values after a flatten, all
channels of one group of a grouped convolution, and the rows of an array that two nodes share. A unit goes only if every
channel in it may go, so the branches of a residual sum keep the union of what they need (EHAP, arXiv 2306.07030).
Channels of the graph's input and output stay, and so do those that a matrix product mixes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from he_runtime.errors import ModelError, Reason
from he_runtime.model import Node

from ..graph import ACTIVATION, Graph
from ..masks import Bools

__all__ = ["ChannelUnits"]

Labels = npt.NDArray[np.int64]
_POINTWISE = frozenset({"avg_pool2d", "affine", "quadratic", "polynomial", ACTIVATION})


class ChannelUnits:
    """A label for every channel of every tensor, by one walk over the graph; joined labels (union-find) are one unit.

    `tensors` maps a tensor to the labels (channels,) of its first axis, `rows` a weight array to those of its output
    channels, `axes` an array to the labels of those of its axes that run over channels. ModelError on an unknown op.
    """

    def __init__(self, graph: Graph) -> None:
        self._parent: list[int] = []
        self._frozen: set[int] = set()
        self.tensors: dict[str, Labels] = {graph.input_name: self.fresh(_channels(graph.input_shape))}
        self.rows: dict[str, Labels] = {}
        self.axes: dict[str, dict[int, Labels]] = {}
        self.freeze(self.tensors[graph.input_name])
        for node in graph.nodes:
            if node.op not in _RULES:
                raise ModelError(
                    f"cannot remove channels around node {node.name!r}: got op {node.op!r}, need one of {sorted(_RULES)}",
                    Reason.MODEL_UNSUPPORTED,
                )
            self.tensors[node.name] = _RULES[node.op](self, graph, node, [self.tensors[i] for i in node.inputs])
        self.freeze(self.tensors[graph.output])

    def fresh(self, count: int) -> Labels:
        """`count` new labels, each its own unit."""
        start = len(self._parent)
        self._parent += range(start, start + count)
        return np.arange(start, start + count)

    def join(self, first: Labels, second: Labels) -> None:
        """Make one unit of each pair of labels."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            self._parent[self._root(a)] = self._root(b)

    def freeze(self, labels: Labels) -> None:
        """Let the units of these labels stay for good."""
        self._frozen.update(labels.tolist())

    def index(self, key: str, axis: int, labels: Labels) -> None:
        """Note that `axis` of an array runs over these channels; a second user of the array must lose the same."""
        self.join(self.axes.setdefault(key, {}).setdefault(axis, labels), labels)

    def outputs(self, node: Node, labels: Labels) -> Labels:
        """Note that these are the output channels of a linear layer; returns them."""
        self.join(self.rows.setdefault(node.arrays["weight"], labels), labels)
        for key in node.arrays.values():
            self.index(key, 0, labels)
        return labels

    def fixed(self, labels: Labels) -> Bools:
        """Which labels belong to units that never go."""
        return self._member(labels, {self._root(label) for label in self._frozen})

    def staying(self, keep: Mapping[str, Bools]) -> Bools:
        """For every label whether its unit stays, if these output channels (out,) by weight array are wanted.

        Arrays that `keep` leaves out keep all. ModelError on an unknown array, a wrong shape or a layer left empty.
        """
        self._check(keep)
        wanted = {self._root(label) for label in self._frozen}
        for key, labels in self.rows.items():
            chosen = labels[np.asarray(keep[key], dtype=bool)] if key in keep else labels
            wanted |= {self._root(label) for label in chosen.tolist()}
        staying = self._member(np.arange(len(self._parent)), wanted)
        empty = [key for key, labels in self.rows.items() if not staying[labels].any()]
        if empty:
            raise ModelError(
                f"cannot remove channels: got none left in {empty}, need at least one in every layer; try keeping the "
                "strongest"
            )
        return staying

    def _root(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label

    def _member(self, labels: Labels, roots: set[int]) -> Bools:
        return np.array([self._root(label) in roots for label in labels.tolist()], dtype=bool)

    def _check(self, keep: Mapping[str, Bools]) -> None:
        unknown = sorted(set(keep) - set(self.rows))
        if unknown:
            raise ModelError(f"cannot remove channels of {unknown}: need some of {sorted(self.rows)}")
        for key, wanted in keep.items():
            if np.shape(wanted) != self.rows[key].shape:
                raise ModelError(
                    f"cannot remove channels of {key!r}: got a choice of shape {np.shape(wanted)}, need "
                    f"{self.rows[key].shape}, one bool per output channel"
                )


def _channels(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1


def _dense(units: ChannelUnits, graph: Graph, node: Node, inputs: list[Labels]) -> Labels:
    outputs = units.fresh(len(graph.arrays[node.arrays["weight"]]))
    if len(graph.shape_of(node.inputs[0])) == 1:
        units.index(node.arrays["weight"], 1, inputs[0])
        return units.outputs(node, outputs)
    # The layer mixes the last axis and channels are the first: what it mixes stays, and so do its outputs.
    units.freeze(units.outputs(node, outputs))
    units.freeze(inputs[0])
    return inputs[0]


def _conv2d(units: ChannelUnits, graph: Graph, node: Node, inputs: list[Labels]) -> Labels:
    key, groups = node.arrays["weight"], int(node.attrs["groups"])
    outputs = units.outputs(node, units.fresh(len(graph.arrays[key])))
    if groups == 1:
        units.index(key, 1, inputs[0])
    else:  # a group goes as a whole, so that a convolution of fewer groups is left
        _join_rows(units, np.concatenate([inputs[0].reshape(groups, -1), outputs.reshape(groups, -1)], axis=1))
    return outputs


def _reshape(units: ChannelUnits, graph: Graph, node: Node, inputs: list[Labels]) -> Labels:
    """Every element keeps its unit; elements that come to lie in one channel become one unit."""
    source = graph.shape_of(node.inputs[0]) or (1,)
    elements = np.broadcast_to(inputs[0].reshape((-1,) + (1,) * (len(source) - 1)), source)
    return _join_rows(units, elements.reshape(_channels(node.shape), -1))


def _join_rows(units: ChannelUnits, labels: Labels) -> Labels:
    """One unit of each row; returns a label of each."""
    units.join(labels[:, 1:].ravel(), np.repeat(labels[:, 0], labels.shape[1] - 1))
    return np.array(labels[:, 0])


def _pointwise(units: ChannelUnits, graph: Graph, node: Node, inputs: list[Labels]) -> Labels:
    for key in node.arrays.values():
        shape = np.shape(graph.arrays[key])
        # One row of coefficients for all channels may happen to have as many entries as there are channels.
        if shape[:1] == inputs[0].shape and len(shape) == (2 if node.op == "polynomial" else 1):
            units.index(key, 0, inputs[0])
    return inputs[0]


def _elementwise(units: ChannelUnits, _: Graph, __: Node, inputs: list[Labels]) -> Labels:
    units.join(inputs[0], inputs[1])
    return inputs[0]


def _concat(_: ChannelUnits, __: Graph, ___: Node, inputs: list[Labels]) -> Labels:
    return np.concatenate(inputs)


def _matmul(units: ChannelUnits, _: Graph, node: Node, inputs: list[Labels]) -> Labels:
    outputs = units.fresh(_channels(node.shape))
    for labels in (*inputs, outputs):
        units.freeze(labels)
    return outputs


_RULES: dict[str, Callable[[ChannelUnits, Graph, Node, list[Labels]], Labels]] = {
    "dense": _dense,
    "conv2d": _conv2d,
    "reshape": _reshape,
    "add": _elementwise,
    "multiply": _elementwise,
    "concat": _concat,
    "matmul": _matmul,
    **dict.fromkeys(_POINTWISE, _pointwise),
}
