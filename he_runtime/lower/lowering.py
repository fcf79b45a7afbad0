"""What the emission of every stage shares: the growing plan, the tensors so far, the scales that readers ask for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..params import CkksParams
from ..plan import Kind
from .emission import Emission, VectorPool
from .polynomial import Terms
from .program import Program, Scales, Values
from .targets import Targets

__all__ = ["Lowering", "Note"]

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Note:
    """What a value inside a polynomial stage holds: sum_k terms[k] C_k of ciphertext `index`."""

    stage: str
    label: str
    terms: Terms
    index: int


@dataclass(frozen=True)
class Carried:
    """The mapped input of a polynomial: its error times the derivative is an error of the result."""

    mapped: int
    stage: str
    index: int


class Lowering:
    """State of one emission. `tensors` maps the name of every tensor so far to its values.

    `notes` and `carried`, by value, are what the error prediction knows of polynomials.
    """

    def __init__(self, program: Program, params: CkksParams, scales: Scales, pool: VectorPool) -> None:
        self.program, self.params, self.scales = program, params, scales
        self.stages, self.packing = program.stages, program.packing
        self.batch, self.levels = program.batch, program.levels
        self.targets = Targets(program.stages, program.levels, program.input_level, params, scales, program.width)
        self.emission = Emission(params, pool)
        count = program.packing.input_layout.ciphertexts
        source = {
            k: self.emission.value(program.input_level, self.targets.rest(program.input_level)) for k in range(count)
        }
        self.tensors: dict[str, Values] = {program.source: source}
        self.notes: dict[int, Note] = {}
        self.carried: dict[int, Carried] = {}

    def spread(self, tensor: str, values: Vector) -> Vector:
        """Elements -> (ciphertexts, period) in the tensor's layout."""
        return self.packing.layouts[tensor].spread(values)

    def constant(self, tensor: str) -> Vector:
        """What is constant of a tensor, zeros elsewhere: (ciphertexts, period)."""
        known = self.program.constants.get(tensor)
        layout = self.packing.layouts[tensor]
        return self.spread(tensor, np.zeros(layout.size) if known is None else np.nan_to_num(known))

    def biased(self, layer: str, values: Values, bias: Vector) -> Values:
        return {k: self.shifted(layer, v, bias[k]) for k, v in values.items()}

    def shifted(self, layer: str, value: int, constant: Vector) -> int:
        """The value plus a plaintext; itself when that is zero."""
        if not constant.any():
            return value
        e, kind = self.emission, self.emission.values[value]
        plain = e.plain(e.pool.intern(constant), kind.level, kind.scale)
        return e.op(Kind.ADD_PLAIN, layer, value, plaintext=plain)

    def times(self, layer: str, value: int, factor: Vector, scale: float, exact: float | None = None) -> int:
        """The value times a vector encoded at `scale`; `exact` is the scale of the result where that is known."""
        e = self.emission
        plain = e.plain(e.pool.intern(factor), e.values[value].level, scale)
        return e.op(Kind.MUL_PLAIN, layer, value, plaintext=plain, scale=exact)

    def brought(self, layer: str, value: int, factor: Vector, scale: float) -> int:
        """The value times a vector, at exactly this scale."""
        e, have = self.emission, self.emission.values[value]
        plain = e.plain(e.pool.intern(factor), have.level, scale / have.scale)
        return e.op(Kind.MUL_PLAIN, layer, value, plaintext=plain, scale=scale)

    def at_rest(self, layer: str, value: int, rescale: bool = True) -> int:
        """A product as it is kept: two polynomials, one rescale lower, at the scale of tensors at rest there."""
        e = self.emission
        if e.values[value].size > 2:
            value = e.op(Kind.RELINEARIZE, layer, value)
        if not rescale:
            return value
        width = self.program.width
        rest = self.targets.rest(e.values[value].level - width)
        for _ in range(width - 1):
            value = e.op(Kind.RESCALE, layer, value)
        return e.op(Kind.RESCALE, layer, value, scale=None if self.scales.steps else rest)
