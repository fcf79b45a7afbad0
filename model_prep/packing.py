"""Which diagonal each weight lies on in the packing that the planner would choose.

The planner is asked, not imitated: every weight is replaced by its own number, the layers are lowered as usual, and the
numbers are read back from the packed matrices. So gaps, multiplexed channels, client-side windows, groups and several
ciphertexts need no code here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from he_runtime.compile import lower
from he_runtime.cost import load_default
from he_runtime.layout import WindowLayout
from he_runtime.lower.diagonals import diagonal_set
from he_runtime.lower.maps import LinearMap
from he_runtime.lower.packing import Packing
from he_runtime.lower.stages import LinearStage
from he_runtime.model import InputSpec

from .diagonals import Ints, contiguous_positions, diagonal_classes, set_ids
from .graph import LINEAR_OPS, Graph

__all__ = ["packed_classes"]


def packed_classes(graph: Graph, degree: int = 8192) -> dict[str, Ints]:
    """Array name -> class of each weight: weights of one class occupy the same diagonals at ring degree `degree`.

    A layer that the planner merges with another one that has weights or averages is classified by contiguous slots.
    """
    model = _numbered(graph).to_model("numbered", InputSpec("", graph.input_shape))
    program, _ = lower(model, degree, 1, load_default("tenseal"))
    found: dict[str, Ints] = {}
    for stage in program.stages:
        key = _only_weight(graph, stage) if isinstance(stage, LinearStage) else None
        if key is not None and key not in found:
            assert isinstance(stage, LinearStage)
            found[key] = _stage_classes(stage, program.packing, graph.arrays[key].shape)
    return found | {key: _fallback(graph, key) for key in _weight_keys(graph) if key not in found}


def _weight_keys(graph: Graph) -> list[str]:
    return list(dict.fromkeys(n.arrays["weight"] for n in graph.nodes if n.op in LINEAR_OPS))


def _numbered(graph: Graph) -> Graph:
    """Weights become 1, 2, 3, ...: exact in float64 and never zero, so that the pattern is the dense one."""
    numbers = {k: np.arange(1.0, 1 + graph.arrays[k].size).reshape(graph.arrays[k].shape) for k in _weight_keys(graph)}
    return replace(graph, arrays={**graph.arrays, **numbers})


def _only_weight(graph: Graph, stage: LinearStage) -> str | None:
    """The one array whose numbers the stage's matrix holds unmixed, if there is one."""
    nodes = [graph.node(name) for name in stage.nodes]
    weights = [n.arrays["weight"] for n in nodes if n.op in LINEAR_OPS]
    unmixed = len(weights) == 1 and all(n.op in LINEAR_OPS or n.op == "reshape" for n in nodes)
    return weights[0] if unmixed else None


def _stage_classes(stage: LinearStage, packing: Packing, shape: tuple[int, ...]) -> Ints:
    layout = packing.layouts.get(stage.input, packing.input_layout)
    matrix: LinearMap = stage.map
    if isinstance(packing.input_layout, WindowLayout) and stage.windowed is not None:
        matrix, layout = stage.windowed[1], packing.input_layout.inner
    assert not isinstance(layout, WindowLayout)
    cells = diagonal_set(matrix, layout, packing.layouts[stage.name]).entry_cell
    numbers = np.rint(matrix.matrix.tocoo().data).astype(np.int64) - 1
    return _sets_of_cells(numbers, cells.ravel().astype(np.int64), int(np.prod(shape))).reshape(shape)


def _sets_of_cells(numbers: Ints, cells: Ints, size: int) -> Ints:
    """(weight, cell) pairs -> for each of `size` weights the number of its set of cells."""
    pairs = np.unique(np.stack([numbers, cells]), axis=1)
    counts = np.bincount(pairs[0], minlength=size)
    place = np.arange(pairs.shape[1]) - np.repeat(np.cumsum(counts) - counts, counts)
    table: npt.NDArray[np.int64] = np.full((size, max(1, int(counts.max()))), -1, dtype=np.int64)
    table[pairs[0], place] = pairs[1]
    return set_ids(table)


def _fallback(graph: Graph, key: str) -> Ints:
    node = graph.users_of_array(key)[0]
    positions = contiguous_positions(node.shape, graph.shape_of(node.inputs[0]))
    return diagonal_classes(node, graph.arrays[key].shape, positions)
