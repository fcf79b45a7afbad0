"""Two linear layers in a row are one: what is left where a whole activation was removed.

Removing an activation saves its levels only because its neighbours merge. The planner merges consecutive layers anyway
(he_runtime/lower/stages.py); merged here, a pair is also pruned, quantized and packed as the one layer that runs.

The composition of two convolutions is a convolution where the padding of the second meets zeros that the first would
yield there too; a convolution before a dense layer becomes a dense layer on the image. Where neither holds, or where the
merged layer is planned to cost more, two layers stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from he_runtime import compile, price
from he_runtime.backends import default_backend
from he_runtime.cost import CostTable, load_default
from he_runtime.errors import DoesNotFit
from he_runtime.lower.conv2d import conv2d_map
from he_runtime.model import InputSpec, Node
from he_runtime.reference import calibrate

from ..folding.folding import fold, fold_affine
from ..graph import LINEAR_OPS, Graph
from ..trainable import Site, TrainableGraph
from .polynomial import MIN_STD, RANGE_MARGIN

__all__ = ["COST_SAMPLES", "merge_linear", "planned_ms", "simplified"]

Floats = npt.NDArray[np.float64]
Cost = Callable[[Graph], float]
COST_SAMPLES = 256  # to calibrate plans that are only compared


def merge_linear(graph: Graph, cost: Cost | None = None) -> Graph:
    """Merge every dense or conv2d node with the one before it where that is exact and costs no more.

    `cost` says what a graph costs (usually `planned_ms`); without it whatever can be merged is. Values are unchanged up
    to rounding. The merged node has the name of the later one.
    """
    for name in [n.name for n in graph.nodes if n.op in LINEAR_OPS]:
        while (merged := _merged_with_previous(graph, graph.node(name))) is not None:
            if cost is not None and cost(merged) > cost(graph):
                break
            graph = merged
    return graph


def planned_ms(x: npt.NDArray[np.float32], table: CostTable | None = None) -> Cost:
    """A cost for `merge_linear`: the predicted latency of the graph's plan, folded, infinite where nothing holds it.

    `x` (B, *shape) are normalized inputs to calibrate on; the graph must hold no activation any more.
    """
    chosen = table or load_default(default_backend())

    def cost(graph: Graph) -> float:
        model = fold(graph).to_model("candidate", InputSpec("", graph.input_shape))
        try:
            return price(compile(calibrate(model, x.astype(np.float64)), table=chosen), chosen).latency_ms
        except DoesNotFit:
            return math.inf

    return cost


@torch.no_grad()
def simplified(net: TrainableGraph, x: npt.NDArray[np.float32], cost: Cost | None = None) -> TrainableGraph:
    """A trained network with the lines of removed activations folded and their neighbours merged, to train further.

    Units and radii of the sites that are left are measured anew on normalized inputs `x` (B, *shape), since folding may
    change the scale of what a site sees; so this comes after the blend. Masks and the like are not taken along.
    """
    graph = merge_linear(fold_affine(net.to_graph()), cost)
    seen = TrainableGraph(graph)
    seen.eval()(torch.as_tensor(x, dtype=torch.float32))
    kept = {n.name for n in graph.nodes} & set(net.sites)
    return TrainableGraph(
        graph, {name: _measured(net.sites[name], seen.pre_activations[name]) for name in sorted(kept)}
    )


def _measured(site: Site, x: torch.Tensor) -> Site:
    if x.ndim == 2 or len(site.unit) == 1:  # one unit for all
        unit = np.full_like(site.unit, float(x.std()))
    else:
        unit = x.movedim(1, 0).flatten(1).std(1).double().numpy()
    return replace(site, unit=np.maximum(unit, MIN_STD), radius=RANGE_MARGIN * float(x.abs().max()))


def _merged_with_previous(graph: Graph, node: Node) -> Graph | None:
    source = node.inputs[0]
    if source == graph.input_name or not _read_once(graph, source):
        return None
    before = graph.node(source)
    if before.op == "reshape" and node.op == "dense":
        return _through_reshape(graph, before, node)
    if (before.op, node.op) == ("dense", "dense"):
        first, second = graph.array(before, "weight"), graph.array(node, "weight")
        bias = second @ graph.array(before, "bias") + graph.array(node, "bias")
        return _joined(graph, before, replace(node, inputs=before.inputs), second @ first, bias)
    if (before.op, node.op) == ("conv2d", "conv2d"):
        return _convolutions(graph, before, node)
    return None


def _read_once(graph: Graph, name: str) -> bool:
    readers = graph.consumers(name)
    return len(readers) == 1 and readers[0].inputs.count(name) == 1 and graph.output != name


def _joined(graph: Graph, first: Node, second: Node, weight: Floats, bias: Floats) -> Graph:
    """`first` removed, `second` with the weights of both."""
    arrays = {"weight": weight} if not bias.any() and not {"bias"} & {*first.arrays, *second.arrays} else {}
    nodes = tuple(second if n.name == second.name else n for n in graph.nodes if n.name != first.name)
    return replace(graph, nodes=nodes).with_arrays(second, arrays or {"weight": weight, "bias": bias})


def _through_reshape(graph: Graph, reshape: Node, node: Node) -> Graph | None:
    """A convolution, a flattening and a dense layer: a dense layer on the flattened image."""
    source = reshape.inputs[0]
    if len(reshape.shape) != 1 or source == graph.input_name or not _read_once(graph, source):
        return None
    before = graph.node(source)
    if before.op == "reshape":
        return graph.without(before.name)
    if before.op != "conv2d":
        return None
    shape = graph.shape_of(before.inputs[0])
    alone = Graph(before.inputs[0], shape, before.name, (before,), {k: graph.arrays[k] for k in before.arrays.values()})
    map_ = conv2d_map(alone.to_model("layer", InputSpec("", shape)), before, shape)
    second = graph.array(node, "weight")
    flat = replace(reshape, inputs=before.inputs, shape=(math.prod(shape),))
    weight = np.asarray((map_.matrix.T @ second.T).T)
    return _joined(graph.with_node(flat), before, node, weight, second @ map_.bias + graph.array(node, "bias"))


def _convolutions(graph: Graph, first: Node, second: Node) -> Graph | None:
    axes = [_axis(graph, first, second, axis) for axis in (0, 1)]
    bias = graph.array(first, "bias")
    if any(a is None for a in axes) or (bias.any() and any(second.attrs["padding"])):
        return None
    rows, columns = (a for a in axes if a is not None)
    w1, w2 = (_ungrouped(graph, n) for n in (first, second))
    weight = np.zeros((len(w2), w1.shape[1], rows.size, columns.size))
    for y2, x2 in np.ndindex(*w2.shape[2:]):
        for y1, x1 in np.ndindex(*w1.shape[2:]):
            at = rows.tap(y1, y2), columns.tap(x1, x2)
            weight[:, :, at[0], at[1]] += w2[:, :, y2, x2] @ w1[:, :, y1, x1]
    groups = math.gcd(int(first.attrs["groups"]), int(second.attrs["groups"]))
    attrs = {
        "stride": [rows.stride, columns.stride],
        "padding": [rows.padding, columns.padding],
        "dilation": [rows.dilation, columns.dilation],
        "groups": groups,
    }
    moved = w2.sum((2, 3)) @ bias + graph.array(second, "bias")
    whole = replace(second, inputs=first.inputs, attrs=attrs)
    return _joined(graph, first, whole, _grouped(weight, groups), moved)


class _Axis:
    """Two kernels after one another along one axis; taps i of the first and j of the second read i*d1 + j*d2*s1."""

    def __init__(self, first: Node, second: Node, sizes: tuple[int, int], axis: int) -> None:
        (s1, p1, d1), (s2, p2, d2) = (
            tuple(int(n.attrs[key][axis]) for key in ("stride", "padding", "dilation")) for n in (first, second)
        )
        self.steps = d1, d2 * s1
        moving = [step for step, size in zip(self.steps, sizes, strict=True) if size > 1]
        self.dilation = math.gcd(*moving) if moving else 1
        self.stride, self.padding = s1 * s2, p1 + p2 * s1
        self.size = self.tap(sizes[0] - 1, sizes[1] - 1) + 1
        self.reach = (sizes[0] - 1) * d1  # of the first kernel alone

    def tap(self, i: int, j: int) -> int:
        return (i * self.steps[0] + j * self.steps[1]) // self.dilation

    def outputs(self, extent: int) -> int:
        return (extent + 2 * self.padding - self.dilation * (self.size - 1) - 1) // self.stride + 1


def _axis(graph: Graph, first: Node, second: Node, axis: int) -> _Axis | None:
    """The composition along an axis, or None where it is no convolution."""
    sizes = (graph.array(n, "weight").shape[2 + axis] for n in (first, second))
    found = _Axis(first, second, (next(sizes), next(sizes)), axis)
    extent = graph.shape_of(first.inputs[0])[1 + axis]
    stride, padding = (int(first.attrs[key][axis]) for key in ("stride", "padding"))
    if second.attrs["padding"][axis]:
        # The second kernel reads zeros beyond the first one's outputs; those must be what the first would yield there.
        before, after = found.reach - padding - stride, first.shape[1 + axis] * stride - padding
        if before >= 0 or after < extent:
            return None
    return found if found.outputs(extent) == second.shape[1 + axis] else None


def _ungrouped(graph: Graph, node: Node) -> Floats:
    """The kernel (out, in, kh, kw) with zeros between the groups."""
    weight, groups = graph.array(node, "weight"), int(node.attrs["groups"])
    rows, width = len(weight) // groups, weight.shape[1]
    full = np.zeros((len(weight), width * groups, *weight.shape[2:]))
    for g in range(groups):
        full[g * rows : (g + 1) * rows, g * width : (g + 1) * width] = weight[g * rows : (g + 1) * rows]
    return full


def _grouped(weight: Floats, groups: int) -> Floats:
    """The blocks that `_ungrouped` put apart, (out, in / groups, kh, kw)."""
    blocks = (np.split(rows, groups, axis=1)[g] for g, rows in enumerate(np.split(weight, groups)))
    return np.concatenate(list(blocks))
