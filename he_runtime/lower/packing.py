"""What the layout search decides: the layout of every tensor and the packed form of every linear stage."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from ..layout import Layout, contiguous
from .costs import Costs
from .diagonals import DiagonalSet, PackedLinear, pack
from .groups import Groups
from .input_layouts import INPUT_PACKINGS, InputLayout
from .layout_search import Layouts, Search
from .linear_sets import LinearLayout, linear_operand
from .maps import LinearMap
from .stage_types import LinearStage, Stage

__all__ = ["INPUT_PACKINGS", "Packing", "choose_packing"]


@dataclass(frozen=True)
class Packing:
    """The layout of every tensor and the packed form of every linear stage; `source` is the model's input.

    `plain` is the cheapest packing without pitched copies, where this one has some: its error is smaller.
    """

    source: str
    layouts: dict[str, Layout]
    input_layout: InputLayout
    packed: dict[str, PackedLinear]
    plain: Packing | None = None

    @property
    def ciphertexts(self) -> int:
        """Of the tensor that has most; elements alone do not count, since no larger ring would join them."""
        return max(self.input_layout.ciphertexts, *(x.span_ciphertexts for x in self.layouts.values()))

    def operand(self, stage: LinearStage) -> tuple[LinearMap, LinearLayout]:
        """The map as it is packed, and the layout of all that it is applied to."""
        return linear_operand(stage, self._all_layouts)

    def evenly_split(self, stages: list[Stage]) -> Packing:
        """The same layouts, where baby steps and giant steps cost the same: fewer baby steps than where they are hoisted."""
        linear = [s for s in stages if isinstance(s, LinearStage)]
        sets = {name: packed.diagonals for name, packed in self.packed.items()}
        return replace(self, packed=_packed(linear, self._all_layouts, sets, dict.fromkeys(sets, 1.0)), plain=None)

    @property
    def _all_layouts(self) -> dict[str, InputLayout]:
        return {**self.layouts, self.source: self.input_layout}


def choose_packing(
    stages: list[Stage],
    source: str,
    shape: tuple[int, ...],
    slots: int,
    levels: dict[str, int],
    costs: Costs,
    max_ciphertexts: int,
    input_packings: Collection[str] = INPUT_PACKINGS,
    pitched: bool = True,
) -> Packing:
    """Price the candidates and pack every linear stage in the cheapest layouts found, with `pitched` copies or without.

    DoesNotFit for a tensor that takes more than `max_ciphertexts` in every layout, and where the input has none of
    `input_packings`.
    """
    groups = Groups(stages, source, shape)
    search = Search(stages, groups, source, slots, levels, costs, max_ciphertexts, input_packings, pitched)
    linear = [s for s in stages if isinstance(s, LinearStage)]
    weights = {s.name: costs.giant_weight(levels[s.name]) for s in linear}

    def made(chosen: Layouts) -> Packing:
        by_tensor = {name: chosen[groups.of[name]] for name in groups.shapes}
        layouts = {n: x for n, x in by_tensor.items() if isinstance(x, Layout)}
        sets = {s.name: search.diagonals(s, by_tensor) for s in linear}
        packed = _packed(linear, by_tensor, sets, weights)
        layouts.setdefault(source, contiguous(shape, slots))
        return Packing(source, layouts, by_tensor[source], packed)

    best, plain = search.run()
    return replace(made(best), plain=None if plain is None else made(plain))


def _packed(
    linear: list[LinearStage],
    layouts: Mapping[str, InputLayout],
    sets: Mapping[str, DiagonalSet],
    weights: Mapping[str, float],
) -> dict[str, PackedLinear]:
    """Every linear stage at its cheapest split, where a giant step costs that many baby steps.

    The stage with most rotations chooses its steps first; the others reuse its keys where that costs nothing.
    """
    packed: dict[str, PackedLinear] = {}
    steps: frozenset[int] = frozenset()
    for stage in sorted(linear, key=lambda s: -sets[s.name].rotations):
        target = layouts[stage.name]
        assert isinstance(target, Layout)
        found = pack(linear_operand(stage, layouts)[0], target, sets[stage.name], steps, weights[stage.name])
        packed[stage.name] = found
        steps |= found.split.steps | found.diagonals.fold_steps
    return packed
