"""Which scale every unrescaled value must have: what its readers need, found from the output backwards.

Every tensor at rest on a level has exactly that level's scale, here Delta. A lazy linear layer is encoded so that what
reads it returns to Delta after one rescale by the prime q of its level: a square needs sqrt(Delta * q), and so do both sides of a product, or q
the one side whose partner is at rest. Where several readers differ, the least serves: the others raise it by a constant.
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import DoesNotFit
from ..params import CkksParams
from .emission import MIN_RAISE_BITS
from .integers import integral_product, is_plain
from .levels import is_lazy, readers_of
from .polynomial_scales import PolynomialScales, polynomial_scales
from .program import Scales
from .stage_types import AddStage, JoinStage, LinearStage, MultiplyStage, PolynomialStage, QuadraticStage, Stage, Vector

__all__ = ["Targets"]


class Targets:
    """The scales that readers ask for, for one chain of primes."""

    def __init__(
        self,
        stages: list[Stage],
        levels: dict[str, int],
        source: int,
        params: CkksParams,
        scales: Scales,
        width: int = 1,
    ) -> None:
        self.stages, self.levels, self.params, self.scales = stages, levels, params, scales
        self._source = source  # the input's level
        self.width = width  # primes that a rescale takes
        self._by_name = {s.name: s for s in stages}
        self._found: dict[str, float] = {}
        self._integral: dict[str, Vector] = {}
        self._polynomials: dict[tuple[str, float], PolynomialScales] = {}

    def rest(self, level: int) -> float:
        """The scale of tensors at rest at a level."""
        return self.scales.at_rest(level)

    def product(self, level: int) -> float:
        """The scale of a product that one rescale at `level` brings to rest."""
        return self.rest(level - self.width) * math.prod(self.params.primes[level - self.width + 1 : level + 1])

    def of(self, name: str) -> float:
        """The scale of a tensor; of an unrescaled one the least that a reader on its own level asks for."""
        if self.scales.steps:
            return float(self.integral(name)[0])
        if not is_lazy(self.stages, name):
            return self._resting(name)
        if name not in self._found:
            readers = readers_of(self.stages, name)
            top = max((self.levels[r.name] for r in readers), default=0)
            asked = [self._asked(r, name, len(readers)) for r in readers if self.levels[r.name] == top]
            self._found[name] = min(asked, default=self.rest(0) * self.scales.last)
        return self._found[name]

    def _resting(self, name: str) -> float:
        stage = self._by_name.get(name)
        return self.rest(self._source if stage is None else self.levels[name] - self.width * stage.rescales)

    def integral(self, name: str) -> Vector:
        """The scales that follow from the input's where every weight is an integer: (1,), or one per ciphertext."""
        stage = self._by_name.get(name)
        if stage is None:
            return np.array([self.rest(self._source)])
        if name not in self._integral:
            below = self.integral(stage.inputs[0])
            if isinstance(stage, LinearStage):
                self._integral[name] = below / self.scales.steps[name]
            else:
                assert isinstance(stage, QuadraticStage)
                product = integral_product(stage, below, self.scales.coefficient)
                self._integral[name] = np.array(
                    [product / (self.params.primes[self.levels[name]] if stage.rescales else 1)]
                )
        return self._integral[name]

    def product_of(self, stage: QuadraticStage) -> float:
        """The scale of a quadratic before its rescale."""
        if self.scales.steps:
            return integral_product(stage, self.integral(stage.input), self.scales.coefficient)
        return self.product(self.levels[stage.name])

    def is_plain(self, stage: QuadraticStage) -> bool:
        """Whether a quadratic costs no product with a plaintext."""
        return is_plain(stage, self.integral(stage.input)) if self.scales.steps else stage.is_square

    def squared(self, stage: QuadraticStage) -> float:
        """The scale at which a value is squared."""
        return self.of(stage.input) if self.scales.steps else math.sqrt(self.product(self.levels[stage.name]))

    def _asked(self, reader: Stage, name: str, readers: int) -> float:
        if isinstance(reader, AddStage | JoinStage):
            return self.meeting(reader)
        product = self.product(self.levels[reader.name])
        if isinstance(reader, QuadraticStage):
            return math.sqrt(product if reader.is_square else product / self.scales.coefficient)
        if isinstance(reader, PolynomialStage):
            free = readers == 1 and reader.is_mapped
            return self.polynomial(reader).input if free else math.sqrt(product / self.scales.coefficient)
        assert isinstance(reader, MultiplyStage)
        partner = reader.right if name == reader.left else reader.left
        return math.sqrt(product) if readers > 1 or self.is_free(partner) else product / self._resting(partner)

    def meeting(self, stage: AddStage | JoinStage) -> float:
        """The scale of a sum; where some sides are at rest, one that they can be raised to."""
        scale, resting = self.of(stage.name), [self._resting(name) for name in stage.inputs if not self.is_free(name)]
        if not resting or scale >= max(resting) * 2**MIN_RAISE_BITS:
            return scale
        return max(resting) * max(1, round(scale / max(resting)))

    def polynomial(self, stage: PolynomialStage, have: float = 0.0) -> PolynomialScales:
        """All scales of a polynomial whose input comes at any scale, or at `have` and is raised from there."""
        key = (stage.name, have)
        if key not in self._polynomials:
            level = self.levels[stage.name]
            found = polynomial_scales(stage.structure, self.params, level, self.rest(level - stage.rescales), have)
            if found is None:
                raise DoesNotFit(
                    f"cannot evaluate the polynomial of layer {stage.layer!r}: degree {len(stage.coefficients) - 1} finds no "
                    "scales on this chain; try larger primes or a lower degree"
                )
            self._polynomials[key] = found
        return self._polynomials[key]

    def is_free(self, name: str) -> bool:
        """Whether the scale of the value follows its readers; others are at rest."""
        stage = self._by_name.get(name)
        if isinstance(stage, AddStage | JoinStage):
            return is_lazy(self.stages, name) and any(self.is_free(i) for i in stage.inputs)
        return isinstance(stage, LinearStage) and is_lazy(self.stages, name)
