"""Layout choice: which slot layout each tensor gets, by the price of the layers on either side.

Elementwise stages tie their tensors together (one layout for all). Starting from contiguous layouts, each group of
tensors tries its candidates while the others stay, until nothing improves; for a chain of layers this settles in one
or two sweeps. Interleaved groups pay only where both sides of a layer have them, so a network with grouped layers starts
from interleaved layouts too, and the cheaper end counts. A gathered input is tied to its layer's output, so both are tried
together, from where the search without it ended.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from ..errors import DoesNotFit
from ..layout import Layout, WindowLayout, contiguous, image_candidates, interleaved
from .candidates import channel_groups, with_rows_alone
from .costs import Costs
from .diagonals import DiagonalSet, PackedLinear, diagonal_set, pack
from .gather import GatheredLayout, gathered, gathered_set
from .input_layouts import INPUT_PACKINGS, InputLayout, packing_name, reaches
from .joint import JointLayout
from .leaf_counts import ciphertext_leaves
from .maps import LinearMap
from .stage_types import JoinStage, LinearStage, Stage
from .stagger import StaggeredLayout, proposals, staggered_set

__all__ = ["INPUT_PACKINGS", "Packing", "choose_packing"]

LinearLayout = Layout | JointLayout | StaggeredLayout | GatheredLayout  # what a linear map is applied to
_SWEEPS = 3
_PROPOSED = 3  # gathers that are followed to the end
_WORTHWHILE = 0.9  # of the price: a gather shows the client the zeros, and has it encrypt and send more


@dataclass(frozen=True)
class Packing:
    """The layout of every tensor and the packed form of every linear stage; `source` is the model's input."""

    source: str
    layouts: dict[str, Layout]
    input_layout: InputLayout
    packed: dict[str, PackedLinear]

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
        return replace(self, packed=_packed(linear, self._all_layouts, sets, dict.fromkeys(sets, 1.0)))

    @property
    def _all_layouts(self) -> dict[str, InputLayout]:
        return {**self.layouts, self.source: self.input_layout}


def linear_operand(stage: LinearStage, layouts: Mapping[str, InputLayout]) -> tuple[LinearMap, LinearLayout]:
    """The map of a stage and the layout of its inputs; over gathered windows where the input is laid out so."""
    found = [layouts[name] for name in stage.inputs]
    if isinstance(found[0], WindowLayout):
        assert stage.windowed is not None
        return stage.windowed[1], found[0].inner
    if isinstance(found[0], StaggeredLayout | GatheredLayout):
        return stage.map, found[0]
    parts = tuple(x for x in found if isinstance(x, Layout))
    return stage.map, parts[0] if len(parts) == 1 else JointLayout(parts)


class _Search:
    def __init__(
        self,
        stages: list[Stage],
        source: str,
        shape: tuple[int, ...],
        slots: int,
        levels: dict[str, int],
        costs: Costs,
        max_ciphertexts: int,
        input_packings: Collection[str],
    ) -> None:
        self.max_ciphertexts, self.input_packings = max_ciphertexts, input_packings
        self.stages, self.source, self.slots, self.levels, self.costs = stages, source, slots, levels, costs
        self.shapes = {source: shape} | {s.name: s.shape for s in stages}
        self.group = self._groups()
        self.entry = self.group[source]
        self.grouped = self._grouped()
        leaves = {s.name: ciphertext_leaves(stages, s, levels[s.name]) for s in stages}
        self.per_ciphertext = {
            name: costs.leaves((leaf, level, n) for (leaf, level), n in counts.items())
            for name, counts in leaves.items()
        }
        self._sets: dict[tuple[str | InputLayout, ...], DiagonalSet] = {}

    def _groups(self) -> dict[str, str]:
        """Tensor -> representative of the tensors that must share its layout."""
        parent = {name: name for name in self.shapes}

        def find(name: str) -> str:
            while parent[name] != name:
                name = parent[name]
            return name

        for stage in self.stages:
            if not isinstance(stage, LinearStage | JoinStage):
                for name in stage.inputs:
                    parent[find(name)] = find(stage.name)
        return {name: find(name) for name in self.shapes}

    def _grouped(self) -> dict[str, set[int]]:
        """Group of tensors -> the numbers of channel groups in the linear stages next to it, where a group has members."""
        found: dict[str, set[int]] = {g: set() for g in self.group.values()}
        for stage in self.stages:
            if isinstance(stage, LinearStage) and len(stage.inputs) == 1 and self.slots > 1:
                count = channel_groups(stage.map, self.shapes[stage.input], stage.shape)
                for name in (stage.input, stage.name):
                    if 1 < count < self.shapes[name][0]:
                        found[self.group[name]].add(count)
        return found

    @cached_property
    def input_reader(self) -> LinearStage | None:
        """The linear stage that alone reads the input, if one does."""
        readers = [s for s in self.stages if self.entry in map(self.group.get, s.inputs)]
        return readers[0] if len(readers) == 1 and isinstance(readers[0], LinearStage) else None

    def diagonals(self, stage: LinearStage, layouts: Mapping[str, InputLayout]) -> DiagonalSet:
        """Of a stage, with the layouts of its inputs and output."""
        target = layouts[stage.name]
        assert isinstance(target, Layout)
        key = (stage.name, *(layouts[name] for name in stage.inputs), target)
        if key not in self._sets:
            map_, operand = linear_operand(stage, layouts)
            if isinstance(operand, StaggeredLayout):
                self._sets[key] = staggered_set(map_, operand, target)
            elif isinstance(operand, GatheredLayout):
                self._sets[key] = gathered_set(operand)
            else:
                self._sets[key] = diagonal_set(map_, operand, target)
        return self._sets[key]

    def price(self, layouts: dict[str, InputLayout], touching: str | None = None) -> float:
        total = 0.0
        for stage in self.stages:
            names = (*stage.inputs, stage.name)
            if isinstance(stage, LinearStage) and (touching is None or touching in map(self.group.get, names)):
                own = {name: layouts[self.group[name]] for name in names}
                if not reaches(own[stage.inputs[0]], own[stage.name]):
                    return math.inf
                found = self.diagonals(stage, own)
                total += self.costs.linear(found, self.levels[stage.name])
            if touching in (None, self.group[stage.name]):
                total += self.per_ciphertext[stage.name] * layouts[self.group[stage.name]].ciphertexts
        if touching in (None, self.entry):
            top = max(self.levels[s.name] for s in self.stages if self.source in s.inputs)
            total += self.costs.border(layouts[self.entry].ciphertexts, top)
        return total

    def candidates(self, group: str) -> list[InputLayout]:
        shape = self.shapes[group]
        planes = tuple(sorted({(s[1], s[2]) for s in self.shapes.values() if len(s) == 3}))
        plain = image_candidates(shape, self.slots, planes)
        woven = [interleaved(x, count) for x in plain for count in sorted(self.grouped[group])]
        regular = [*plain, *(x for x in woven if x is not None)]
        found: list[InputLayout] = [*regular, *self._with_rows_alone(group, regular)]
        reader = self.input_reader
        if group == self.entry and reader is not None and reader.windowed is not None:
            found.append(reader.windowed[0])
        if self.slots == 1:  # one feature per ciphertext: any order costs the same
            return found[:1]
        return [x for x in found if x.ciphertexts <= self.max_ciphertexts]

    def _with_rows_alone(self, group: str, regular: list[Layout]) -> list[Layout]:
        """The same vectors with the densest rows of a layer that makes them alone; an input is made by none."""
        if self.slots == 1 or group == self.entry:
            return []
        makers = [s for s in self.stages if isinstance(s, LinearStage) and self.group[s.name] == group]
        return [found for s in makers for layout in regular for found in with_rows_alone(layout, s.map)]

    def staggered(self, group: str, bases: list[InputLayout], layouts: dict[str, InputLayout]) -> list[StaggeredLayout]:
        """Staggered forms of an input that one linear stage reads, for the present layout of its output."""
        reader = self.input_reader
        if group != self.entry or reader is None or len(reader.inputs) > 1:
            return []
        target = layouts[self.group[reader.name]]
        assert isinstance(target, Layout)
        return [
            proposed
            for base in bases
            if isinstance(base, Layout)
            for proposed in proposals(
                self.diagonals(reader, {reader.input: base, reader.name: target}),
                base,
                target,
                self.costs,
                self.levels[reader.name],
            )
        ]

    def gathered(
        self, layouts: dict[str, InputLayout], options: dict[str, list[InputLayout]]
    ) -> list[dict[str, InputLayout]]:
        """Where the most promising gathers of the input lead, each with a layout of the output of its one reader."""
        reader = self.input_reader
        if "gathered" not in self.input_packings or reader is None or len(reader.inputs) > 1:
            return []
        output = self.group[reader.name]
        starts = [
            {**layouts, self.entry: found, output: target}
            for target in options[output]
            if isinstance(target, Layout) and (found := gathered(reader.map, target, self.max_ciphertexts)) is not None
        ]
        if self._allowed(layouts[self.entry]):  # then it must save enough if all other layers stay as cheap as they are
            whole, first = self.price(layouts), self.price(layouts, self.entry)
            starts = [s for s in starts if whole - first + self.price(s, self.entry) < _WORTHWHILE * whole]
        tied = (self.entry, output)
        return [
            self._settled(start, options | {group: [start[group]] for group in tied})
            for start in sorted(starts, key=self.price)[:_PROPOSED]
        ]

    def run(self) -> dict[str, InputLayout]:
        groups = list(dict.fromkeys(self.group.values()))
        options = {g: self.candidates(g) for g in groups}
        if not all(options.values()):
            tight = next(g for g in groups if not options[g])
            raise DoesNotFit(
                f"cannot pack tensor {tight!r}: more than {self.max_ciphertexts} ciphertexts of {self.slots} slots; try a larger N"
            )
        starts: list[dict[str, InputLayout]] = [{g: options[g][0] for g in groups}]
        for count in sorted(set().union(*self.grouped.values())):
            starts.append({g: self._woven(g, options[g][0], count) for g in groups})
        ends = [self._settled(start, options) for start in starts]
        ends += [end for start in ends for end in self.gathered(start, options)]
        ends = [end for end in ends if self._allowed(end[self.entry])]
        if not ends:
            raise DoesNotFit(
                f"cannot pack input {self.source!r}: its layers allow none of {sorted(self.input_packings)}; "
                f"try {', '.join(repr(name) for name in INPUT_PACKINGS if name not in self.input_packings)} too"
            )
        return ends[0] if len(ends) == 1 else min(ends, key=self._weighed)

    def _weighed(self, layouts: dict[str, InputLayout]) -> float:
        """The price, where that of a gather weighs more than its seconds."""
        return self.price(layouts) / (_WORTHWHILE if isinstance(layouts[self.entry], GatheredLayout) else 1.0)

    def _allowed(self, layout: InputLayout) -> bool:
        return packing_name(layout) in self.input_packings

    def _woven(self, group: str, plain: InputLayout, count: int) -> InputLayout:
        found = interleaved(plain, count) if count in self.grouped[group] and isinstance(plain, Layout) else None
        return found or plain

    def _settled(
        self, layouts: dict[str, InputLayout], options: dict[str, list[InputLayout]]
    ) -> dict[str, InputLayout]:
        """Where single changes lead from a start."""
        for _ in range(_SWEEPS):
            before = dict(layouts)
            for group in layouts:
                now = [*options[group], *self.staggered(group, options[group], layouts)]
                if group == self.entry:
                    now = [x for x in now if self._allowed(x)] or [layouts[group]]
                layouts[group] = min(now, key=lambda c: self.price({**layouts, group: c}, group))
            if layouts == before:
                break
        return layouts


def choose_packing(
    stages: list[Stage],
    source: str,
    shape: tuple[int, ...],
    slots: int,
    levels: dict[str, int],
    costs: Costs,
    max_ciphertexts: int,
    input_packings: Collection[str] = INPUT_PACKINGS,
) -> Packing:
    """Price the candidates and pack every linear stage in the cheapest layouts found.

    DoesNotFit for a tensor that takes more than `max_ciphertexts` in every layout, and where the input has none of
    `input_packings`.
    """
    search = _Search(stages, source, shape, slots, levels, costs, max_ciphertexts, input_packings)
    chosen = search.run()
    by_tensor = {name: chosen[search.group[name]] for name in search.shapes}
    layouts = {n: x for n, x in by_tensor.items() if isinstance(x, Layout)}
    linear = [s for s in stages if isinstance(s, LinearStage)]
    sets = {s.name: search.diagonals(s, by_tensor) for s in linear}
    weights = {s.name: costs.giant_weight(levels[s.name]) for s in linear}
    packed = _packed(linear, by_tensor, sets, weights)
    layouts.setdefault(source, contiguous(shape, slots))
    return Packing(source, layouts, by_tensor[source], packed)


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
