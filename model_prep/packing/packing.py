"""Which diagonal each weight lies on in the packings that the planner would choose.

The planner is asked, not imitated: the layers are lowered as usual, first with every weight one and then with every
weight replaced by its own number, and what the packed matrices hold says which weight lies where. So gaps, multiplexed
channels, client-side windows, groups, average pools merged with a layer and several ciphertexts need no code here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from he_runtime.backends import default_backend
from he_runtime.compile import compile, lower
from he_runtime.cost import CostTable, load_default
from he_runtime.layout import Layout
from he_runtime.lower.costs import Costs
from he_runtime.lower.diagonals import DiagonalSet
from he_runtime.lower.groups import Groups
from he_runtime.lower.input_layouts import INPUT_PACKINGS
from he_runtime.lower.levels import stage_levels
from he_runtime.lower.maps import LinearMap
from he_runtime.lower.pitch import lanes_of, pitches, write_set
from he_runtime.lower.program import Program
from he_runtime.lower.split import Split
from he_runtime.lower.stages import LinearStage, build_stages
from he_runtime.model import CompressedModel, InputSpec
from he_runtime.reference import calibrate

from ..folding.folding import fold
from ..graph import LINEAR_OPS, Graph, weight_keys
from .diagonals import Ints, contiguous_classes, set_ids

__all__ = ["PackedWeights", "packed_classes", "packed_ways", "packed_weights", "planned_degree"]

Floats = npt.NDArray[np.float64]
Stages = dict[str, LinearStage]
_DIAGONAL = tuple(name for name in INPUT_PACKINGS if name != "gathered")  # a gathered layer has no diagonals
_TOLERANCE = 1e-9  # relative, of a quotient of two entries


def planned_degree(graph: Graph, spec: InputSpec, x: npt.NDArray[np.float32]) -> int:
    """The ring degree of the plan of a network before pruning, whose packing the pruned one will share.

    `x` (n, *shape) holds normalized inputs to measure ranges on.
    """
    return compile(calibrate(fold(graph).to_model("unpruned", spec), x.astype(np.float64))).params.degree


@dataclass(frozen=True)
class PackedWeights:
    """Where one weight array lies: weight `pairs[0, k]` (a flat index) occupies cell `pairs[1, k]` of `diagonals`.

    `classes` numbers the weights by their set of cells, in the array's shape.
    """

    pairs: Ints
    diagonals: DiagonalSet
    split: Split
    classes: Ints
    level: int  # of the layer's operands


def packed_classes(graph: Graph, degree: int, table: CostTable | None = None) -> dict[str, Ints]:
    """Array name -> class of each weight: weights of one class occupy the same diagonals at ring degree `degree`.

    Classes are disjoint sets of diagonals for plain layers. Merged with an average pool before it, a layer has classes
    that overlap, and a diagonal is empty only when all of its classes are. Layers that `packed_weights` leaves out
    are classified by contiguous slots.
    """
    model = graph.to_model("unpruned", InputSpec("", graph.input_shape))
    packed = packed_weights(model, degree, table)
    return {
        key: packed[key].classes if key in packed else contiguous_classes(model, name)
        for key, name in weight_keys(model).items()
    }


def packed_weights(model: CompressedModel, degree: int, table: CostTable | None = None) -> dict[str, PackedWeights]:
    """Array name -> where its weights lie when nothing is pruned, with one query per ciphertext.

    Packings are weighed by `table`, by default the one that ships with the default back end, as in `compile`; those with
    pitched copies, where few diagonals are left to tell apart, are not among them.

    A layer is left out where an entry of a packed matrix mixes several of its weights (a convolution merged with the
    pool after it). An array that several layers share lies where the first has it.
    """
    return {key: next(ways) for key, ways in _all_ways(model, degree, table).items()}


def packed_ways(model: CompressedModel, degree: int, table: CostTable | None = None) -> dict[str, list[PackedWeights]]:
    """Array name -> where its weights lie by `packed_weights`, and in each number of lanes that pitched copies allow."""
    return {key: list(ways) for key, ways in _all_ways(model, degree, table).items()}


def _all_ways(model: CompressedModel, degree: int, table: CostTable | None) -> dict[str, Iterator[PackedWeights]]:
    ones = _probed(model, {})
    table = table or load_default(default_backend())
    program, _ = lower(ones, degree, 1, table, input_packings=_DIAGONAL, pitched=False)
    levels, base = stage_levels(program.stages), _linear_stages(ones, degree)
    found: dict[str, Iterator[PackedWeights]] = {}
    for key_of in _rounds(model, base):
        numbers, marks = (probe(model, key_of.values()) for probe in (_numbers, _marks))
        numbered, marked = (_linear_stages(_probed(model, values), degree) for values in (numbers, marks))
        for name, key in key_of.items():
            one, number, mark = (program.packing.operand(stages[name])[0] for stages in (base, numbered, marked))
            weights = _weight_of_each_entry(one, number, mark, marks[key])
            if weights is not None and key not in found:
                sets = _sets(program, base[name], Costs(table, degree))
                found[key] = _located(weights, sets, model.arrays[key].shape, levels[name])
    return found


def _sets(program: Program, stage: LinearStage, costs: Costs) -> Iterator[tuple[DiagonalSet, Split]]:
    """A stage as it is packed, and with its output in pitched copies."""
    packed = program.packing.packed[stage.name]
    yield packed.diagonals, packed.split
    groups = Groups(program.stages, program.source, ())
    map_, source = program.packing.operand(stage)
    if groups.pitchable.get(groups.of[stage.name]) is None or not isinstance(source, Layout):
        return
    weight = costs.giant_weight(program.levels[stage.name])
    narrowest = {lanes_of(source, x): x for x in reversed(pitches(source, program.packing.layouts[stage.name]))}
    for target in narrowest.values():
        found = write_set(map_, source, target)
        yield found, found.split_at(weight)


def _numbers(model: CompressedModel, keys: Iterable[str]) -> dict[str, Floats]:
    return {k: np.arange(1.0, 1 + model.arrays[k].size).reshape(model.arrays[k].shape) for k in keys}


def _marks(model: CompressedModel, keys: Iterable[str]) -> dict[str, Floats]:
    """Values that no mean of several of them equals, except by a chance in billions."""
    return {k: np.random.default_rng(0).uniform(1.0, 2.0, model.arrays[k].shape) for k in keys}


def _probed(model: CompressedModel, probes: Mapping[str, Floats]) -> CompressedModel:
    """The model with these weights and ones for all others, so that no entry of a packed matrix cancels."""
    scales = [n.arrays["scale"] for n in model.nodes if n.op == "affine"]
    ones = {key: np.ones(np.shape(model.arrays[key])) for key in (*weight_keys(model), *scales)}
    steps = {key: step for key, step in model.quantization.items() if key not in ones}
    return model.with_(arrays={**model.arrays, **ones, **probes}, quantization=steps)


def _linear_stages(model: CompressedModel, degree: int) -> Stages:
    return {s.name: s for s in build_stages(model, degree // 2) if isinstance(s, LinearStage)}


def _rounds(model: CompressedModel, stages: Stages) -> Iterator[dict[str, str]]:
    """Stage -> one of its weight arrays, in as few rounds as cover all."""
    of_stage = {
        name: [n.arrays["weight"] for n in map(model.node, stage.nodes) if n.op in LINEAR_OPS]
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


def _located(
    weights: Ints, sets: Iterable[tuple[DiagonalSet, Split]], shape: tuple[int, ...], level: int
) -> Iterator[PackedWeights]:
    size = int(np.prod(shape))
    for diagonals, split in sets:
        entries = np.stack([diagonals.of_entries(weights), diagonals.entry_cell.ravel().astype(np.int64)])
        pairs = np.unique(entries, axis=1)
        counts = np.bincount(pairs[0], minlength=size)
        place = np.arange(pairs.shape[1]) - np.repeat(np.cumsum(counts) - counts, counts)
        table: npt.NDArray[np.int64] = np.full((size, max(1, int(counts.max()))), -1, dtype=np.int64)
        table[pairs[0], place] = pairs[1]
        yield PackedWeights(pairs, diagonals, split, set_ids(table).reshape(shape), level)
