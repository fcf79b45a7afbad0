"""What is emitted: packed stages and the scales that the search varies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from .constants import Constants
from .leaf_counts import Counts, ciphertext_leaves, linear_leaves
from .levels import stage_levels
from .packing import Packing
from .stage_types import LinearStage, Stage, Vector

__all__ = ["Program", "Scales", "Values"]

# Index of a tensor's ciphertext -> value. One whose elements are all constant is never computed, and absent.
Values = dict[int, int]


@dataclass(frozen=True)
class Scales:
    """Delta (tensors at rest), the output layer's plaintext scale, and that of an unfolded quadratic's coefficient.

    Tensors at rest on level k have `rises[k]` bits more than Delta, those above the last rise none: lower tensors have
    fewer factors to leave room for, and at a larger scale rescaling leaves them a smaller error. Whole bits, so that a sum
    of tensors of two levels brings them together exactly.

    With `steps`, linear stages have integer weights: multiples of a step of their row, encoded at scale 1 / step. Delta is
    then the scale of the input only, and those of all other tensors follow from it; `coefficient` is that of the largest
    coefficient of a quadratic.
    """

    delta: float
    last: float
    coefficient: float = 2.0**16
    rises: tuple[int, ...] = ()
    steps: Mapping[str, Vector] = field(default_factory=dict)  # per ciphertext, or one for all

    def at_rest(self, level: int) -> float:
        """The scale of tensors at rest at a level."""
        return self.delta * 2.0 ** (self.rises[level] if 0 <= level < len(self.rises) else 0)


@dataclass(frozen=True)
class Program:
    """What is lowered: stages and their constant elements, the packing, and how many samples share a ciphertext.

    `base` is the level of the output, where one prime does not hold it; `width` is how many primes a rescale takes.
    """

    stages: list[Stage]
    constants: Constants
    packing: Packing
    source: str
    batch: int
    base: int = 0
    width: int = 1

    @cached_property
    def levels(self) -> dict[str, int]:
        """Stage name -> level at which its ops start."""
        return stage_levels(self.stages, self.base, self.width)

    @property
    def input_level(self) -> int:
        return max((self.levels[s.name] for s in self.stages if self.source in s.inputs), default=0)

    def leaf_counts(self, fused: bool = False) -> Counts:
        """(leaf, level) -> how often, border included, before scales are known: alignments and biases are left out.

        `fused` is whether the backend runs a linear transform as one call.
        """
        counts: Counts = Counter({("upload", self.input_level): self.packing.input_layout.ciphertexts})
        for stage in self.stages:
            self._count(stage, self.packing.layouts[stage.name].ciphertexts, counts, fused)
        return counts

    def _count(self, stage: Stage, ciphertexts: int, counts: Counts, fused: bool) -> None:
        level = self.levels[stage.name]
        if isinstance(stage, LinearStage):
            packed = self.packing.packed[stage.name]
            for leaf, n in linear_leaves(packed.diagonals, packed.split, fused).items():
                counts[leaf, level] += n
        for key, n in ciphertext_leaves(self.stages, stage, level).items():
            counts[key] += n * ciphertexts
