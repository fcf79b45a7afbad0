"""Which tensors must share a layout, and who makes and reads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from .candidates import channel_groups
from .stage_types import JoinStage, LinearStage, QuadraticStage, Stage

__all__ = ["Groups"]


class Groups:
    """Elementwise stages tie their tensors together; `of` names the group of each tensor, `entry` that of the input."""

    def __init__(self, stages: Sequence[Stage], source: str, shape: tuple[int, ...]) -> None:
        self.stages = stages
        self.shapes = {source: shape} | {s.name: s.shape for s in stages}
        self.of = self._tied()
        self.entry = self.of[source]
        self.all = list(dict.fromkeys(self.of.values()))

    def _tied(self) -> dict[str, str]:
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

    def makers(self, group: str) -> list[LinearStage]:
        """The linear stages whose outputs are in the group."""
        return [s for s in self.stages if isinstance(s, LinearStage) and self.of[s.name] == group]

    def inside(self, group: str) -> list[Stage]:
        """The other stages there."""
        return [s for s in self.stages if not isinstance(s, LinearStage) and self.of[s.name] == group]

    def readers(self, group: str) -> list[Stage]:
        """The stages that take it into another group."""
        return [s for s in self.stages if self.of[s.name] != group and group in map(self.of.get, s.inputs)]

    @cached_property
    def input_reader(self) -> LinearStage | None:
        """The linear stage that alone reads the input, if one does."""
        readers = [s for s in self.stages if self.entry in map(self.of.get, s.inputs)]
        return readers[0] if len(readers) == 1 and isinstance(readers[0], LinearStage) else None

    @cached_property
    def pitchable(self) -> dict[str, LinearStage]:
        """Of every group that pitched copies suit, the stage that makes it (pitch.py).

        One linear stage of one input makes it, activations of degree two may follow, and only linear stages read it: what
        higher degrees make of partial sums outside of their interval has no bound, and clients are to see no partial sums.
        """
        found: dict[str, LinearStage] = {}
        for group in self.all:
            makers, inside, readers = self.makers(group), self.inside(group), self.readers(group)
            last = self.of[self.stages[-1].name] == group
            if group == self.entry or last or len(makers) != 1 or len(makers[0].inputs) > 1:
                continue
            linear = all(isinstance(s, LinearStage) and len(s.inputs) == 1 for s in readers)
            if linear and all(isinstance(s, QuadraticStage) for s in inside):
                found[group] = makers[0]
        return found

    def interleavings(self) -> dict[str, set[int]]:
        """Group of tensors -> the numbers of channel groups in the linear stages next to it, where a group has members."""
        found: dict[str, set[int]] = {g: set() for g in self.all}
        for stage in self.stages:
            if isinstance(stage, LinearStage) and len(stage.inputs) == 1:
                count = channel_groups(stage.map, self.shapes[stage.input], stage.shape)
                for name in (stage.input, stage.name):
                    if 1 < count < self.shapes[name][0]:
                        found[self.of[name]].add(count)
        return found
