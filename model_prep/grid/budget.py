"""Masks of a whole network within a budget of milliseconds.

All layers go down together: of every step that any layer may take, the one that loses least saliency per millisecond saved
is taken, until the plan is within its budget. A first layer that may be gathered is tried both ways, at every length of row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from he_runtime.compile import lower
from he_runtime.cost import CostTable
from he_runtime.errors import ModelError
from he_runtime.lower.costs import Costs
from he_runtime.lower.input_layouts import INPUT_PACKINGS
from he_runtime.lower.levels import stage_levels
from he_runtime.model import CompressedModel

from ..graph import weight_keys
from ..packing.packing import packed_ways
from .layer import Choice, GridLayer, GridPath, grid_layer
from .rows import Fixed, RowLayer, row_layer

__all__ = ["Budget", "Option", "budget_of", "rounded_up"]

Floats = npt.NDArray[np.float64]
Option = GridLayer | RowLayer


@dataclass(frozen=True)
class Budget:
    """What each weight array may become, and what everything else of the plan costs (`fixed_ms`).

    Arrays that no grid describes (shared, or merged with a pool) are not listed and stay as they are.
    """

    options: Mapping[str, Sequence[Option]]
    fixed_ms: float

    @property
    def least_ms(self) -> float:
        """The plan with one class left in every layer: no budget below it can be met."""
        return self.fixed_ms + sum(min(o.least_ms for o in several) for several in self.options.values())

    def need(self, target_ms: float) -> None:
        """ModelError, with the floor, for a target below it."""
        if target_ms < self.least_ms:
            raise ModelError(
                f"cannot prune to {target_ms:.4g} ms: that is below the cheapest network of this shape, need at least "
                f"{rounded_up(self.least_ms):g} ms; try that, or a smaller network"
            )

    def masks(self, energy: Mapping[str, Floats], target_ms: float) -> dict[str, Choice]:
        """Array name -> what stays, within the target; `energy` is the saliency of each weight, in the arrays' shapes.

        Ways down end with a layer's strongest class; where that is too dear, and below the floor (`need` refuses that), it is
        the cheapest choice.
        """
        ways = product(*([(o, k) for o in several for k in range(o.ways)] for several in self.options.values()))
        ends = [self._descend(way, energy, target_ms) for way in ways]
        within = [end for end in ends if self.total_ms(end) <= target_ms] or [self.cheapest(energy)]
        return min(within, key=lambda end: sum(choice.lost for choice in end.values()))

    def cheapest(self, energy: Mapping[str, Floats]) -> dict[str, Choice]:
        """What costs `least_ms`: one class in each layer, or the shortest rows."""
        options = {key: min(several, key=lambda o: o.least_ms) for key, several in self.options.items()}
        return {key: option.cheapest(energy[key]) for key, option in options.items()}

    def with_rows(self, length: int, *, exactly: bool = False) -> Budget:
        """Only gathered first layers with rows no shorter than `length` (or just as long); 0 leaves everything open.

        ModelError, naming the lengths there are, where no first layer has such a gather.
        """
        if length == 0:
            return self
        gathered = {key: o for key, several in self.options.items() for o in several if isinstance(o, RowLayer)}
        lengths = sorted({n for o in gathered.values() for n in o.lengths})
        if length not in lengths:
            raise ModelError(f"cannot gather rows of {length}: need one of {lengths or 'a dense first layer'}; try 0")
        return replace(self, options={**self.options, **{k: [_rows(o, length, exactly)] for k, o in gathered.items()}})

    def divisions(self) -> list[tuple[Budget, Budget]]:
        """(on the way, at the end) for every way to spend it: the grids alone, and gathers with rows of each length.

        Rows on the way are no shorter than at the end.
        """
        grids = {key: [o for o in several if isinstance(o, GridLayer)] for key, several in self.options.items()}
        lengths = sorted(
            {n for several in self.options.values() for o in several if isinstance(o, RowLayer) for n in o.lengths}
        )
        alone = replace(self, options=grids)
        return [(alone, alone), *((self.with_rows(n), self.with_rows(n, exactly=True)) for n in lengths)]

    def _descend(
        self, way: Sequence[tuple[Option, int]], energy: Mapping[str, Floats], target_ms: float
    ) -> dict[str, Choice]:
        paths: dict[str, GridPath | Fixed] = {
            key: option.paths(energy[key])[k] for key, (option, k) in zip(self.options, way, strict=True)
        }
        while self.fixed_ms + sum(path.ms for path in paths.values()) > target_ms:
            cheapest = min(paths.values(), key=lambda path: path.ratio)
            if not np.isfinite(cheapest.ratio):
                break
            cheapest.step()
        return {key: path.choice for key, path in paths.items()}

    def total_ms(self, chosen: Mapping[str, Choice]) -> float:
        return self.fixed_ms + sum(c.ms for c in chosen.values())

    def corrected(self, planned_ms: float, modelled_ms: float) -> Budget:
        """With the difference between a plan's price and this model's put into what is fixed."""
        return replace(self, fixed_ms=self.fixed_ms + planned_ms - modelled_ms)


def rounded_up(ms: float) -> float:
    """To three digits and never down: what a refusal names has to be enough."""
    unit = 10.0 ** (math.floor(math.log10(ms)) - 2)
    return math.ceil(ms / unit) * unit


def _rows(option: RowLayer, length: int, exactly: bool) -> RowLayer:
    first = option.lengths.index(length)
    kept = slice(first, first + 1 if exactly else None)
    return RowLayer(option.lengths[kept], option.ms[kept])


def budget_of(
    model: CompressedModel, degree: int, table: CostTable, planned_ms: float, *, gather: bool = True
) -> Budget:
    """The budget of a network that nothing has pruned yet; `planned_ms` is the price of its plan without pitched copies.

    A layer that may have pitched copies is a grid for each number of lanes: rotations that fold lanes add more diagonals
    than those that turn diagonals. With `gather`, a dense first layer may take a gathered input instead of diagonals.
    """
    costs = Costs(table, degree)
    ways = {key: [grid_layer(p, costs) for p in packed] for key, packed in packed_ways(model, degree, table).items()}
    fixed = planned_ms - sum(grids[0].whole_ms for grids in ways.values())
    options: dict[str, Sequence[Option]] = dict(ways)
    if gather and (found := _gathered(model, degree, table, costs)) is not None:
        key, rows = found
        options[key] = [*options[key], rows]
    return Budget(options, fixed)


def _gathered(model: CompressedModel, degree: int, table: CostTable, costs: Costs) -> tuple[str, RowLayer] | None:
    """The array of a dense layer that alone reads the input, and its gathers."""
    readers = [n for n in model.nodes if model.input.name in n.inputs]
    while len(readers) == 1 and readers[0].op == "reshape":
        readers = [n for n in model.nodes if readers[0].name in n.inputs]
    if len(readers) != 1 or readers[0].op != "dense":
        return None
    (node,) = readers
    packings = [n for n in INPUT_PACKINGS if n != "gathered"]
    program, _ = lower(model, degree, 1, table, input_packings=packings, pitched=False)
    packing, level = program.packing, stage_levels(program.stages)[node.name]
    key = node.arrays["weight"]
    if key not in weight_keys(model):
        return None
    rows = row_layer(model.arrays[key].shape, packing.layouts[node.name], costs, level)
    return None if rows is None else (key, rows)
