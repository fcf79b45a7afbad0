"""Model graph -> stages: linear layers merged, activations and additions apart.

A stage is what costs a packing or a level. Consecutive linear layers become one map (one level, one packing) when
nothing else reads the value between them. The first stage remembers how to look at a convolution's windows instead of
the image, so that the input layout can be chosen later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import ModelError, Reason
from ..layout import WindowLayout
from ..model import CompressedModel, Node
from .avg_pool2d import avg_pool2d_map
from .conv2d import conv2d_map, conv2d_window_map, window_layout
from .dense import dense_map
from .elementwise import affine_map, broadcast_channels, reshape_map
from .maps import LinearMap

__all__ = ["AddStage", "LinearStage", "QuadraticStage", "Stage", "build_stages"]

Vector = npt.NDArray[np.float64]

# One row per layer family that is linear.
LINEAR: dict[str, Callable[[CompressedModel, Node, tuple[int, ...]], LinearMap]] = {
    "dense": dense_map,
    "conv2d": conv2d_map,
    "avg_pool2d": avg_pool2d_map,
    "reshape": reshape_map,
    "affine": affine_map,
}


@dataclass(frozen=True)
class LinearStage:
    """output = map(input). `windowed` is the same stage over the client's windows, when that is possible."""

    name: str
    input: str
    shape: tuple[int, ...]
    map: LinearMap = field(repr=False)
    nodes: tuple[str, ...] = ()
    windowed: tuple[WindowLayout, LinearMap] | None = field(default=None, repr=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True)
class QuadraticStage:
    """output = a*input^2 + b*input + c per element; a pure square has a = 1 and b = c = 0."""

    name: str
    input: str
    shape: tuple[int, ...]
    a: Vector = field(repr=False)
    b: Vector = field(repr=False)
    c: Vector = field(repr=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)

    @property
    def is_square(self) -> bool:
        """Whether no plaintext product is needed: a is 1 everywhere and b is 0."""
        return bool((self.a == 1).all() and (self.b == 0).all())


@dataclass(frozen=True)
class AddStage:
    """output = left + right."""

    name: str
    left: str
    right: str
    shape: tuple[int, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.left, self.right)


Stage = LinearStage | QuadraticStage | AddStage


def build_stages(model: CompressedModel, slots: int) -> list[Stage]:
    """The stages in evaluation order; only what the output needs. ModelError for an op without a lowering."""
    needed = _needed(model)
    readers = Counter(i for n in model.nodes if n.name in needed for i in set(n.inputs))
    readers[model.output.node] += 1
    stages: dict[str, Stage] = {}
    for node in model.nodes:
        if node.name not in needed:
            continue
        if node.op in LINEAR:
            stage: Stage = _linear(model, node, stages, readers, slots)
        elif node.op == "quadratic":
            a, b, c = (broadcast_channels(model.array(node, role), node.shape) for role in "abc")
            stage = QuadraticStage(node.name, node.inputs[0], node.shape, a, b, c)
        elif node.op == "add":
            stage = AddStage(node.name, node.inputs[0], node.inputs[1], node.shape)
        else:
            raise ModelError(
                f"cannot lower node {node.name!r}: op {node.op!r} has no lowering; supported: "
                f"{sorted([*LINEAR, 'quadratic', 'add'])}",
                Reason.MODEL_UNSUPPORTED,
            )
        stages[node.name] = stage
    return [_finish(s) for s in stages.values()]


def _needed(model: CompressedModel) -> set[str]:
    needed = {model.output.node}
    for node in reversed(model.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return needed


def _linear(
    model: CompressedModel, node: Node, stages: dict[str, Stage], readers: Counter[str], slots: int
) -> LinearStage:
    source = node.inputs[0]
    shape = model.shape_of(source)
    layer = LINEAR[node.op](model, node, shape)
    before = stages.get(source)
    if isinstance(before, LinearStage) and readers[source] == 1:
        del stages[source]
        windowed = before.windowed and (before.windowed[0], layer.after(before.windowed[1]))
        merged = layer.after(before.map)
        return LinearStage(node.name, before.input, node.shape, merged, (*before.nodes, node.name), windowed)
    windowed = None
    if source == model.input.name and node.op == "conv2d":
        window = window_layout(model, node, shape, slots)
        if window.covers_source:
            windowed = (window, conv2d_window_map(model, node, shape))
    return LinearStage(node.name, source, node.shape, layer, (node.name,), windowed)


def _finish(stage: Stage) -> Stage:
    if not isinstance(stage, LinearStage):
        return stage
    windowed = stage.windowed and (stage.windowed[0], stage.windowed[1].without_zeros())
    return LinearStage(stage.name, stage.input, stage.shape, stage.map.without_zeros(), stage.nodes, windowed)
