"""Model graph -> stages: linear layers merged, activations, products and additions apart.

Consecutive linear layers become one map (one level, one packing) when nothing else reads the value between them; a
concatenation is a linear map of several inputs, which whatever linear layer reads it takes in at no cost. The first
stage remembers how to look at a convolution's windows instead of the image, so that the input layout can be chosen later.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..chebyshev import chebyshev_coefficients, interval_map
from ..errors import ModelError, Reason
from ..model import CompressedModel, Node
from .avg_pool2d import avg_pool2d_map
from .conv2d import conv2d_map, conv2d_window_map, window_layout
from .dense import dense_map
from .elementwise import affine_map, broadcast_channels, identity, reshape_map
from .maps import LinearMap
from .matmul import matmul_maps, matmul_shape
from .stage_types import (
    AddStage,
    JoinStage,
    LinearStage,
    MultiplyStage,
    PolynomialStage,
    QuadraticStage,
    Stage,
)

__all__ = ["LinearStage", "Stage", "build_stages"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# One row per layer family that is a linear map of one tensor.
LINEAR: dict[str, Callable[[CompressedModel, Node, tuple[int, ...]], LinearMap]] = {
    "dense": dense_map,
    "conv2d": conv2d_map,
    "avg_pool2d": avg_pool2d_map,
    "reshape": reshape_map,
    "affine": affine_map,
}


def build_stages(model: CompressedModel, slots: int) -> list[Stage]:
    """The stages in evaluation order; only what the output needs. ModelError for an op without a lowering."""
    return _Builder(model, slots).build()


class _Builder:
    def __init__(self, model: CompressedModel, slots: int) -> None:
        self.model, self.slots = model, slots
        self.stages: dict[str, Stage] = {}
        self.sizes = {model.input.name: math.prod(model.input.shape)}
        self.names = {model.input.name, *(n.name for n in model.nodes)}
        needed = _needed(model)
        self.nodes = [n for n in model.nodes if n.name in needed]
        # The two sides of a matrix product read apart, also where they read the same tensor.
        self.readers = Counter(i for n in self.nodes for i in (n.inputs if n.op == "matmul" else set(n.inputs)))
        self.readers[model.output.node] += 1

    def build(self) -> list[Stage]:
        for node in self.nodes:
            if node.op in LINEAR:
                self.put(self._layer(node))
            elif node.op in _STAGES:
                self.put(_STAGES[node.op](self, node))
            else:
                raise ModelError(
                    f"cannot lower node {node.name!r}: op {node.op!r} has no lowering; supported: "
                    f"{sorted([*LINEAR, *_STAGES])}",
                    Reason.MODEL_UNSUPPORTED,
                )
        return [_finish(s) for s in _read(list(self.stages.values()), self.model.output.node)]

    def put(self, stage: Stage) -> str:
        self.stages[stage.name] = stage
        self.sizes[stage.name] = math.prod(stage.shape)
        return stage.name

    def linear(
        self,
        name: str,
        inputs: tuple[str, ...],
        shape: tuple[int, ...],
        layer: LinearMap,
        nodes: tuple[str, ...] = (),
        owner: str = "",
        view: bool = False,
    ) -> LinearStage:
        """The layer merged with the linear stages before it: those that nothing else reads, and views."""
        merged = {source: before for source in inputs if (before := self._mergeable(source)) is not None}
        parts: dict[str, sp.csr_array] = {}
        bias = layer.bias
        for source, part in self._columns(layer.matrix, inputs):
            before = merged.get(source)
            if before is None:
                parts[source] = parts[source] + part if source in parts else part
                continue
            bias = part @ before.map.bias + bias
            for inner, block in self._columns(sp.csr_array(part @ before.map.matrix), before.inputs):
                parts[inner] = parts[inner] + block if inner in parts else block
        for source in merged:
            if self.readers[source] == 1:
                del self.stages[source]
        matrix = next(iter(parts.values())) if len(parts) == 1 else sp.csr_array(sp.hstack(list(parts.values())))
        every = dict.fromkeys(n for before in merged.values() for n in before.nodes)
        view = view and all(before.view for before in merged.values())
        return LinearStage(name, tuple(parts), shape, LinearMap(matrix, bias), (*every, *nodes), view=view, owner=owner)

    def _mergeable(self, source: str) -> LinearStage | None:
        before = self.stages.get(source)
        can = isinstance(before, LinearStage) and (before.view or self.readers[source] == 1)
        return before if can and isinstance(before, LinearStage) else None

    def _columns(self, matrix: sp.csr_array, sources: tuple[str, ...]) -> Iterator[tuple[str, sp.csr_array]]:
        """The columns that belong to each source, in order."""
        start = 0
        for source in sources:
            stop = start + self.sizes[source]
            yield source, matrix if len(sources) == 1 else sp.csr_array(matrix[:, start:stop])
            start = stop

    def _layer(self, node: Node) -> LinearStage:
        source = node.inputs[0]
        shape = self.model.shape_of(source)
        layer = LINEAR[node.op](self.model, node, shape)
        before = self.stages.get(source)
        windowed = None
        if isinstance(before, LinearStage) and self.readers[source] == 1:
            windowed = before.windowed and (before.windowed[0], layer.after(before.windowed[1]))
        elif source == self.model.input.name and node.op == "conv2d":
            window = window_layout(self.model, node, shape, self.slots)
            if window.covers_source:
                windowed = (window, conv2d_window_map(self.model, node, shape))
        found = self.linear(node.name, node.inputs, node.shape, layer, (node.name,), view=node.op == "reshape")
        return replace(found, windowed=windowed)

    def concat(self, node: Node) -> Stage:
        readers = [n for n in self.nodes if node.name in n.inputs]
        if self.slots == 1 and not (len(readers) == 1 and readers[0].op in LINEAR):
            return self._join(node.name, node.inputs, node.shape, np.arange(math.prod(node.shape)))
        whole = identity(math.prod(node.shape))
        return self.linear(node.name, node.inputs, node.shape, whole, (node.name,), view=True)

    def quadratic(self, node: Node) -> Stage:
        a, b, c = (broadcast_channels(self.model.array(node, role), node.shape) for role in "abc")
        return QuadraticStage(node.name, node.inputs[0], node.shape, a, b, c)

    def polynomial(self, node: Node) -> Stage:
        """Degrees up to 2 are affine maps and quadratics; the map of the interval goes into a linear stage before it."""
        rows = self.model.array(node, "coefficients")
        assert rows is not None
        coefficients = chebyshev_coefficients(node, rows)
        scale, shift = (broadcast_channels(v, node.shape) for v in interval_map(node))
        if len(coefficients) <= 3:
            return self._low_degree(node, coefficients, scale, shift)
        if coefficients.shape[1] > 1:
            coefficients = np.stack([broadcast_channels(row, node.shape) for row in coefficients])
        source, one, zero = node.inputs[0], np.ones(1), np.zeros(1)
        if self._mergeable(source) is None:
            same = (scale == scale[0]).all() and (shift == shift[0]).all()
            scale, shift = (scale[:1], shift[:1]) if same else (scale, shift)
            return PolynomialStage(node.name, source, node.shape, coefficients, scale, shift)
        mapped = self._virtual(f"{node.name}.input")
        onto = LinearMap(sp.csr_array(sp.diags_array(scale)), shift)
        self.put(self.linear(mapped, (source,), node.shape, onto, owner=node.name))
        return PolynomialStage(node.name, mapped, node.shape, coefficients, one, zero)

    def _low_degree(self, node: Node, coefficients: Floats, scale: Floats, shift: Floats) -> Stage:
        """c0 + c1 v/2 + c2 (v^2/2 - 1) with v = scale * x + shift."""
        rows = [broadcast_channels(row, node.shape) for row in coefficients]
        c0, c1, c2 = (*rows, *(np.zeros_like(rows[0]) for _ in range(3 - len(rows))))
        b = scale * (c1 / 2 + c2 * shift)
        c = c0 - c2 + c1 * shift / 2 + c2 * shift**2 / 2
        if len(coefficients) == 3:
            return QuadraticStage(node.name, node.inputs[0], node.shape, c2 * scale**2 / 2, b, c)
        return self.linear(
            node.name, node.inputs, node.shape, LinearMap(sp.csr_array(sp.diags_array(b)), c), (node.name,)
        )

    def add(self, node: Node) -> Stage:
        return AddStage(node.name, node.inputs[0], node.inputs[1], node.shape)

    def multiply(self, node: Node) -> Stage:
        left, right = node.inputs
        if left == right:
            one, zero = (np.full(math.prod(node.shape), v) for v in (1.0, 0.0))
            return QuadraticStage(node.name, left, node.shape, one, zero, zero)
        return MultiplyStage(node.name, left, right, node.shape, node.name)

    def matmul(self, node: Node) -> Stage:
        shapes = [self.model.shape_of(name) for name in node.inputs]
        left_map, right_map, sum_map = matmul_maps(node, shapes[0], shapes[1])
        spread = matmul_shape(node, shapes[0], shapes[1])
        left, right, product = (self._virtual(f"{node.name}.{role}") for role in ("left", "right", "product"))
        for name, source, map_ in ((left, node.inputs[0], left_map), (right, node.inputs[1], right_map)):
            if self.slots == 1:  # the same ciphertext serves wherever its element occurs
                self.put(self._join(name, (source,), spread, map_.matrix.indices.astype(np.int64), node.name))
            else:
                self.put(self.linear(name, (source,), spread, map_, owner=node.name))
        self.put(MultiplyStage(product, left, right, spread, node.name))
        return self.linear(node.name, (product,), node.shape, sum_map, (node.name,))

    def _join(
        self, name: str, inputs: tuple[str, ...], shape: tuple[int, ...], sources: Ints, owner: str = ""
    ) -> JoinStage:
        return JoinStage(name, inputs, shape, sources, sum(self.sizes[i] for i in inputs), owner)

    def _virtual(self, name: str) -> str:
        """A name that no node has."""
        while name in self.names:
            name += "_"
        return name


# One row per op that is no linear map of one tensor.
_STAGES: dict[str, Callable[[_Builder, Node], Stage]] = {
    "concat": _Builder.concat,
    "quadratic": _Builder.quadratic,
    "polynomial": _Builder.polynomial,
    "add": _Builder.add,
    "multiply": _Builder.multiply,
    "matmul": _Builder.matmul,
}


def _needed(model: CompressedModel) -> set[str]:
    needed = {model.output.node}
    for node in reversed(model.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return needed


def _read(stages: list[Stage], output: str) -> list[Stage]:
    """Without the views that every reader took in."""
    needed = {output}
    for stage in reversed(stages):
        if stage.name in needed:
            needed.update(stage.inputs)
    return [s for s in stages if s.name in needed]


def _finish(stage: Stage) -> Stage:
    if not isinstance(stage, LinearStage):
        return stage
    windowed = stage.windowed and (stage.windowed[0], stage.windowed[1].without_zeros())
    return replace(stage, map=stage.map.without_zeros(), windowed=windowed)
