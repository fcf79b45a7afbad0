"""Layout choice: which slot layout each tensor gets, by the price of the layers on either side.

Elementwise stages tie their tensors together (one layout for all). Starting from contiguous layouts, each group of
tensors tries its candidates while the others stay, until nothing improves; for a chain of layers this settles in one
or two sweeps. Interleaved groups pay only where both sides of a layer have them, so a network with grouped layers starts
from interleaved layouts too, and the cheaper end counts. A gathered input is tied to its layer's output, so both are tried
together, from where the search without it ended. Pitched copies come last: they err more, so what is best without them is
kept beside.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from ..errors import DoesNotFit
from ..layout import Layout, image_candidates, interleaved
from . import pitch, stagger
from .candidates import with_rows_alone
from .costs import Costs
from .diagonals import DiagonalSet
from .gather import GatheredLayout, gathered
from .groups import Groups
from .input_layouts import INPUT_PACKINGS, InputLayout, packing_name, reaches
from .leaf_counts import ciphertext_leaves
from .linear_sets import linear_operand, linear_set
from .pitch import PitchedLayout
from .stage_types import LinearStage, Stage
from .stagger import StaggeredLayout

__all__ = ["Layouts", "Search"]

Layouts = dict[str, InputLayout]  # by group
Options = dict[str, list[InputLayout]]
_SWEEPS = 3
_PROPOSED = 3  # gathers that are followed to the end
_WORTHWHILE = 0.9  # of the price: a gather shows the client the zeros, and has it encrypt and send more


class Search:
    """Prices layouts of all groups; what one linear stage costs between given layouts is remembered."""

    def __init__(
        self,
        stages: list[Stage],
        groups: Groups,
        source: str,
        slots: int,
        levels: dict[str, int],
        costs: Costs,
        max_ciphertexts: int,
        input_packings: Collection[str],
        pitched: bool,
    ) -> None:
        self.max_ciphertexts, self.input_packings, self.pitched = max_ciphertexts, input_packings, pitched
        self.stages, self.source, self.slots, self.levels, self.costs = stages, source, slots, levels, costs
        self.groups, self.group, self.entry = groups, groups.of, groups.entry
        self.woven = groups.interleavings() if slots > 1 else {g: set[int]() for g in groups.all}
        leaves = {s.name: ciphertext_leaves(stages, s, levels[s.name]) for s in stages}
        self.per_ciphertext = {
            name: costs.leaves((leaf, level, n) for (leaf, level), n in counts.items())
            for name, counts in leaves.items()
        }
        self._sets: dict[tuple[str | InputLayout, ...], DiagonalSet] = {}

    def run(self) -> tuple[Layouts, Layouts | None]:
        """The cheapest layouts; and the cheapest without pitched copies, where those have some."""
        options = {g: self._candidates(g) for g in self.groups.all}
        if not all(options.values()):
            tight = next(g for g in self.groups.all if not options[g])
            raise DoesNotFit(
                f"cannot pack tensor {tight!r}: more than {self.max_ciphertexts} ciphertexts of {self.slots} slots; try a larger N"
            )
        starts: list[Layouts] = [{g: options[g][0] for g in self.groups.all}]
        for count in sorted(set().union(*self.woven.values())):
            starts.append({g: self._interleaved(g, options[g][0], count) for g in self.groups.all})
        settled = [self._settled(start, options) for start in starts]
        plain = self._best(settled, options)
        if not self.pitched:
            return plain, None
        best = self._best([self._settled(end, options, pitches=True) for end in settled], options, pitches=True)
        if self._weighed(best) < self._weighed(plain):
            return best, plain
        return plain, None

    def diagonals(self, stage: LinearStage, layouts: Mapping[str, InputLayout]) -> DiagonalSet:
        """Of a stage, with the layouts of its inputs and output."""
        key = (stage.name, *(layouts[name] for name in stage.inputs), layouts[stage.name])
        if key not in self._sets:
            self._sets[key] = linear_set(stage, layouts)
        return self._sets[key]

    def price(self, layouts: Layouts, touching: str | None = None) -> float:
        """Seconds of all stages, or of those next to one group; infinite where a stage does not lead from layout to layout."""
        total = 0.0
        for stage in self.stages:
            names = (*stage.inputs, stage.name)
            if isinstance(stage, LinearStage) and (touching is None or touching in map(self.group.get, names)):
                own = {name: layouts[self.group[name]] for name in names}
                if not reaches([own[name] for name in stage.inputs], own[stage.name]):
                    return math.inf
                found = self.diagonals(stage, own)
                total += self.costs.linear(found, self.levels[stage.name])
            if touching in (None, self.group[stage.name]):
                total += self.per_ciphertext[stage.name] * layouts[self.group[stage.name]].ciphertexts
        if touching in (None, self.entry):
            top = max(self.levels[s.name] for s in self.stages if self.source in s.inputs)
            total += self.costs.border(layouts[self.entry].ciphertexts, top)
        return total

    def _candidates(self, group: str) -> list[InputLayout]:
        """Those that depend on no other layout."""
        shape = self.groups.shapes[group]
        planes = tuple(sorted({(s[1], s[2]) for s in self.groups.shapes.values() if len(s) == 3}))
        plain = image_candidates(shape, self.slots, planes)
        woven = [interleaved(x, count) for x in plain for count in sorted(self.woven[group])]
        regular = [*plain, *(x for x in woven if x is not None)]
        found: list[InputLayout] = [*regular, *self._with_rows_alone(group, regular)]
        reader = self.groups.input_reader
        if group == self.entry and reader is not None and reader.windowed is not None:
            found.append(reader.windowed[0])
        if self.slots == 1:  # one feature per ciphertext: any order costs the same
            return found[:1]
        return [x for x in found if x.ciphertexts <= self.max_ciphertexts]

    def _with_rows_alone(self, group: str, regular: list[Layout]) -> list[Layout]:
        """The same vectors with the densest rows of a layer that makes them alone; an input is made by none."""
        if self.slots == 1 or group == self.entry:
            return []
        return [x for s in self.groups.makers(group) for layout in regular for x in with_rows_alone(layout, s.map)]

    def _interleaved(self, group: str, plain: InputLayout, count: int) -> InputLayout:
        found = interleaved(plain, count) if count in self.woven[group] and isinstance(plain, Layout) else None
        return found or plain

    def _settled(self, start: Layouts, options: Options, *, pitches: bool = False) -> Layouts:
        """Where single changes lead from a start."""
        layouts = dict(start)
        for _ in range(_SWEEPS):
            before = dict(layouts)
            for group in layouts:
                now = self._now(group, options[group], layouts, pitches)
                layouts[group] = min(now, key=lambda c: self.price({**layouts, group: c}, group))
            if layouts == before:
                break
        return layouts

    def _now(self, group: str, regular: list[InputLayout], layouts: Layouts, pitches: bool) -> list[InputLayout]:
        """The candidates of a group, those that suit the present layouts of its neighbours included."""
        bases = [x for x in regular if isinstance(x, Layout)]
        if group == self.entry:
            found = [*regular, *self._staggered(bases, layouts)]
            return [x for x in found if self._allowed(x)] or [layouts[group]]
        return (
            [*regular, *self._pitched(group, bases, layouts), *self._wide(group, bases, layouts)]
            if pitches
            else regular
        )

    def _staggered(self, bases: list[Layout], layouts: Layouts) -> list[StaggeredLayout]:
        """Staggered forms of an input that one linear stage reads, for the present layout of its output."""
        reader = self.groups.input_reader
        if reader is None or len(reader.inputs) > 1:
            return []
        target = layouts[self.group[reader.name]]
        assert isinstance(target, Layout)
        if isinstance(target, PitchedLayout):
            return []
        found: list[StaggeredLayout] = []
        for base in bases:
            plain = self.diagonals(reader, {reader.input: base, reader.name: target})
            found += stagger.proposals(plain, base, target, self.costs, self.levels[reader.name])
        return found

    def _pitched(self, group: str, bases: list[Layout], layouts: Layouts) -> list[PitchedLayout]:
        """Pitched copies of what one linear stage makes, for the present layout of its input."""
        maker = self.groups.pitchable.get(group)
        if maker is None:
            return []
        map_, source = linear_operand(maker, {maker.input: layouts[self.group[maker.input]]})
        if not isinstance(source, Layout) or isinstance(source, PitchedLayout):
            return []
        return pitch.proposals(map_, source, bases, self.costs, self.levels[maker.name])

    def _wide(self, group: str, bases: list[Layout], layouts: Layouts) -> list[Layout]:
        """Longer periods for what is made from pitched copies, which would otherwise be folded over all slots."""
        sources = [layouts[self.group[name]] for s in self.groups.makers(group) for name in s.inputs]
        if not any(isinstance(x, PitchedLayout) for x in sources):
            return []
        return [replace(x, padded=p) for x in bases if not x.alone for p in _doublings(2 * x.period, self.slots)]

    def _gathered(self, layouts: Layouts, options: Options, pitches: bool) -> list[Layouts]:
        """Where the most promising gathers of the input lead, each with a layout of the output of its one reader."""
        reader = self.groups.input_reader
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
            self._settled(start, options | {group: [start[group]] for group in tied}, pitches=pitches)
            for start in sorted(starts, key=self.price)[:_PROPOSED]
        ]

    def _best(self, settled: list[Layouts], options: Options, *, pitches: bool = False) -> Layouts:
        """The cheapest of these ends and of what gathers lead to from there."""
        ends = [*settled, *(end for start in settled for end in self._gathered(start, options, pitches))]
        ends = [end for end in ends if self._allowed(end[self.entry])]
        if not ends:
            raise DoesNotFit(
                f"cannot pack input {self.source!r}: its layers allow none of {sorted(self.input_packings)}; "
                f"try {', '.join(repr(name) for name in INPUT_PACKINGS if name not in self.input_packings)} too"
            )
        return ends[0] if len(ends) == 1 else min(ends, key=self._weighed)

    def _weighed(self, layouts: Layouts) -> float:
        """The price, where that of a gather weighs more than its seconds."""
        return self.price(layouts) / (_WORTHWHILE if isinstance(layouts[self.entry], GatheredLayout) else 1.0)

    def _allowed(self, layout: InputLayout) -> bool:
        return packing_name(layout) in self.input_packings


def _doublings(first: int, beyond: int) -> Iterator[int]:
    """first, 2 * first, .. as long as they are below `beyond`."""
    while first < beyond:
        yield first
        first *= 2
