"""Which diagonal each weight lies on in the packing that the planner would choose.

The planner is asked, not imitated: the layers are lowered as usual, first with every weight one and then with every
weight replaced by its own number, and what the packed matrices hold says which weight lies where. So gaps, multiplexed
channels, client-side windows, groups, average pools merged with a layer and several ciphertexts need no code here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from he_runtime.compile import lower
from he_runtime.cost import load_default
from he_runtime.lower.maps import LinearMap
from he_runtime.lower.packing import Packing
from he_runtime.lower.stages import LinearStage, build_stages
from he_runtime.model import CompressedModel, InputSpec

from .diagonals import Ints, contiguous_positions, diagonal_classes, set_ids
from .graph import LINEAR_OPS, Graph

__all__ = ["packed_classes"]

Floats = npt.NDArray[np.float64]
Stages = dict[str, LinearStage]
_TOLERANCE = 1e-9  # relative, of a quotient of two entries


def packed_classes(graph: Graph, degree: int) -> dict[str, Ints]:
    """Array name -> class of each weight: weights of one class occupy the same diagonals at ring degree `degree`.

    Classes are disjoint sets of diagonals for plain layers. Merged with an average pool before it, a layer has classes
    that overlap, and a diagonal is empty only when all of its classes are. Where an entry of a packed matrix mixes
    several weights (a convolution merged with the pool after it), the layer is classified by contiguous slots. An
    array that several layers share gets the classes of the first.
    """
    ones = _model(graph, {})
    packing = lower(ones, degree, 1, load_default("tenseal"))[0].packing
    base = _linear_stages(ones, degree)
    found: dict[str, Ints] = {}
    for key_of in _rounds(graph, base):
        numbers, marks = (probe(graph, key_of.values()) for probe in (_numbers, _marks))
        numbered, marked = (_linear_stages(_model(graph, values), degree) for values in (numbers, marks))
        for name, key in key_of.items():
            one, number, mark = (packing.operand(stages[name])[0] for stages in (base, numbered, marked))
            weights = _weight_of_each_entry(one, number, mark, marks[key])
            if weights is not None and key not in found:
                found[key] = _stage_classes(base[name], packing, weights, graph.arrays[key].shape)
    return found | {key: _fallback(graph, key) for key in _weight_keys(graph) if key not in found}


def _weight_keys(graph: Graph) -> list[str]:
    return list(dict.fromkeys(n.arrays["weight"] for n in graph.nodes if n.op in LINEAR_OPS))


def _numbers(graph: Graph, keys: Iterable[str]) -> dict[str, Floats]:
    return {k: np.arange(1.0, 1 + graph.arrays[k].size).reshape(graph.arrays[k].shape) for k in keys}


def _marks(graph: Graph, keys: Iterable[str]) -> dict[str, Floats]:
    """Values that no mean of several of them equals, except by a chance in billions."""
    return {k: np.random.default_rng(0).uniform(1.0, 2.0, graph.arrays[k].shape) for k in keys}


def _model(graph: Graph, probes: Mapping[str, Floats]) -> CompressedModel:
    """The graph with these weights and ones for all others, so that no entry of a packed matrix cancels."""
    scales = [n.arrays["scale"] for n in graph.nodes if n.op == "affine"]
    ones = {key: np.ones(np.shape(graph.arrays[key])) for key in (*_weight_keys(graph), *scales)}
    probed = replace(graph, arrays={**graph.arrays, **ones, **probes})
    return probed.to_model("probed", InputSpec("", graph.input_shape))


def _linear_stages(model: CompressedModel, degree: int) -> Stages:
    return {s.name: s for s in build_stages(model, degree // 2) if isinstance(s, LinearStage)}


def _rounds(graph: Graph, stages: Stages) -> Iterator[dict[str, str]]:
    """Stage -> one of its weight arrays, in as few rounds as cover all."""
    of_stage = {
        name: [n.arrays["weight"] for n in map(graph.node, stage.nodes) if n.op in LINEAR_OPS]
        for name, stage in stages.items()
    }
    for index in range(max(map(len, of_stage.values()), default=0)):
        yield {name: keys[index] for name, keys in of_stage.items() if index < len(keys)}


def _weight_of_each_entry(base: LinearMap, numbered: LinearMap, marked: LinearMap, marks: Floats) -> Ints | None:
    """The flat index of the weight behind each entry, or None where some entry mixes several."""
    ones, numbers, seen = (m.matrix.tocoo().data for m in (base, numbered, marked))
    index = np.rint(numbers / ones).astype(np.int64) - 1
    unmixed = (index >= 0) & (index < marks.size)
    unmixed &= np.isclose(seen / ones, marks.ravel()[index % marks.size], rtol=_TOLERANCE, atol=0)
    return index if unmixed.all() else None


def _stage_classes(stage: LinearStage, packing: Packing, weights: Ints, shape: tuple[int, ...]) -> Ints:
    cells = packing.packed[stage.name].diagonals.entry_cell
    return _sets_of_cells(weights, cells.ravel().astype(np.int64), int(np.prod(shape))).reshape(shape)


def _sets_of_cells(weights: Ints, cells: Ints, size: int) -> Ints:
    """(weight, cell) pairs -> for each of `size` weights the number of its set of cells."""
    pairs = np.unique(np.stack([weights, cells]), axis=1)
    counts = np.bincount(pairs[0], minlength=size)
    place = np.arange(pairs.shape[1]) - np.repeat(np.cumsum(counts) - counts, counts)
    table: npt.NDArray[np.int64] = np.full((size, max(1, int(counts.max()))), -1, dtype=np.int64)
    table[pairs[0], place] = pairs[1]
    return set_ids(table)


def _fallback(graph: Graph, key: str) -> Ints:
    node = graph.users_of_array(key)[0]
    positions = contiguous_positions(node.shape, graph.shape_of(node.inputs[0]))
    return diagonal_classes(node, graph.arrays[key].shape, positions)
