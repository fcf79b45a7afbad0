"""Layout choice: which slot layout each tensor gets, by the price of the layers on either side.

Elementwise stages tie their tensors together (one layout for all). Starting from contiguous layouts, each group of
tensors tries its candidates while the others stay, until nothing improves; for a chain of layers this settles in one
or two sweeps.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import DoesNotFit
from ..layout import Layout, WindowLayout, contiguous, image_candidates
from .costs import Costs
from .diagonals import DiagonalSet, PackedLinear, diagonal_set, pack
from .maps import LinearMap
from .stages import LinearStage, Stage

__all__ = ["Packing", "choose_packing"]

InputLayout = Layout | WindowLayout
_SWEEPS = 3


@dataclass(frozen=True)
class Packing:
    """The layout of every tensor and the packed form of every linear stage."""

    layouts: dict[str, Layout]
    input_layout: InputLayout
    packed: dict[str, PackedLinear]


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
    ) -> None:
        self.max_ciphertexts = max_ciphertexts
        self.stages, self.source, self.slots, self.levels, self.costs = stages, source, slots, levels, costs
        self.shapes = {source: shape} | {s.name: s.shape for s in stages}
        self.group = self._groups()
        self._sets: dict[tuple[str, int, int], DiagonalSet] = {}
        self._interned: dict[tuple[object, ...], InputLayout] = {}

    def _groups(self) -> dict[str, str]:
        """Tensor -> representative of the tensors that must share its layout."""
        parent = {name: name for name in self.shapes}

        def find(name: str) -> str:
            while parent[name] != name:
                name = parent[name]
            return name

        for stage in self.stages:
            if not isinstance(stage, LinearStage):
                for name in stage.inputs:
                    parent[find(name)] = find(stage.name)
        return {name: find(name) for name in self.shapes}

    def linear_inputs(self, stage: LinearStage, layout: InputLayout) -> tuple[LinearMap, Layout]:
        if isinstance(layout, WindowLayout):
            assert stage.windowed is not None
            return stage.windowed[1], layout.inner
        return stage.map, layout

    def diagonals(self, stage: LinearStage, source: InputLayout, target: Layout) -> DiagonalSet:
        key = (stage.name, id(source), id(target))
        if key not in self._sets:
            map_, inner = self.linear_inputs(stage, source)
            self._sets[key] = diagonal_set(map_, inner, target)
        return self._sets[key]

    def price(self, layouts: dict[str, InputLayout], touching: str | None = None) -> float:
        total = 0.0
        for stage in self.stages:
            ends = (self.group[stage.inputs[0]], self.group[stage.name])
            if isinstance(stage, LinearStage) and (touching is None or touching in ends):
                target = layouts[ends[1]]
                assert isinstance(target, Layout)
                found = self.diagonals(stage, layouts[ends[0]], target)
                total += self.costs.linear(found.rotations, found.products, self.levels[stage.name])
        entry = self.group[self.source]
        if touching in (None, entry):
            top = max(self.levels[s.name] for s in self.stages if self.source in s.inputs)
            total += self.costs.border(layouts[entry].ciphertexts, top)
        return total

    def candidates(self, group: str) -> list[InputLayout]:
        shape = self.shapes[group]
        readers = [s for s in self.stages if isinstance(s, LinearStage) and self.group[s.input] == group]
        planes = tuple(sorted({(s[1], s[2]) for s in self.shapes.values() if len(s) == 3}))
        found: list[InputLayout] = [*image_candidates(shape, self.slots, planes)]
        if group == self.group[self.source] and len(readers) == 1 and readers[0].windowed is not None:
            found.append(readers[0].windowed[0])
        if self.slots == 1:  # one feature per ciphertext: any order costs the same
            return found[:1]
        return [x for x in found if x.ciphertexts <= self.max_ciphertexts]

    def run(self) -> dict[str, InputLayout]:
        groups = list(dict.fromkeys(self.group.values()))
        options = {g: self.candidates(g) for g in groups}
        if not all(options.values()):
            tight = next(g for g in groups if not options[g])
            raise DoesNotFit(
                f"cannot pack tensor {tight!r}: more than {self.max_ciphertexts} ciphertexts of {self.slots} slots; try a larger N"
            )
        layouts: dict[str, InputLayout] = {g: options[g][0] for g in groups}
        for _ in range(_SWEEPS):
            before = dict(layouts)
            for group in groups:
                layouts[group] = min(options[group], key=lambda c: self.price({**layouts, group: c}, group))
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
) -> Packing:
    """Price the candidates and pack every linear stage in the cheapest layouts found.

    DoesNotFit for a tensor that takes more than `max_ciphertexts` in every layout.
    """
    search = _Search(stages, source, shape, slots, levels, costs, max_ciphertexts)
    chosen = search.run()
    by_tensor = {name: chosen[search.group[name]] for name in search.shapes}
    layouts = {n: x for n, x in by_tensor.items() if isinstance(x, Layout)}
    packed: dict[str, PackedLinear] = {}
    linear = [s for s in stages if isinstance(s, LinearStage)]
    steps: frozenset[int] = frozenset()
    # The stage with most rotations chooses its steps first; the others reuse its keys where that costs nothing.
    sets = {s.name: search.diagonals(s, by_tensor[s.input], layouts[s.name]) for s in linear}
    for stage in sorted(linear, key=lambda s: -sets[s.name].rotations):
        map_, inner = search.linear_inputs(stage, by_tensor[stage.input])
        found = pack(map_, inner, layouts[stage.name], sets[stage.name], steps)
        packed[stage.name] = found
        steps |= found.split.steps | frozenset(found.diagonals.folds)
    layouts.setdefault(source, contiguous(shape, slots))
    return Packing(layouts, by_tensor[source], packed)
