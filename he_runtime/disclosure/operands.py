"""Which real operand stands where a stand-in has one.

A stand-in's weights are drawn, so operands of its plan that are equal are so because of the shape: a convolution's weight
that meets several windows. The bytes of an operand therefore name its place, and the real operand there has the same
period, however many of its values are equal or zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ..errors import DoesNotFit
from ..layout import Layout
from ..lower.diagonals import fill
from ..lower.maps import LinearMap
from ..lower.polynomial import Leaf, Structure, Sum, Terms
from ..lower.program import Program
from ..lower.stage_types import LinearStage, PolynomialStage, QuadraticStage, Stage

__all__ = ["Operands", "paired_stages"]

Rows = npt.NDArray[np.float64]
FAINT = 2.0**-100  # instead of zero: no operand and no coefficient is left out, and none is larger than rounding


def paired_stages(drawn: list[Stage], real: list[Stage]) -> list[Stage]:
    """The real stages with entries and coefficients wherever the stand-in's have some. DoesNotFit where kinds differ."""
    if [(type(s), s.name, s.inputs) for s in drawn] != [(type(s), s.name, s.inputs) for s in real]:
        raise DoesNotFit("cannot hide the structure: the model's layers merge in another way than their shapes say")
    return [_paired(a, b) for a, b in zip(drawn, real, strict=True)]


def _paired(drawn: Stage, real: Stage) -> Stage:
    if isinstance(drawn, LinearStage) and isinstance(real, LinearStage):
        windowed = None
        if drawn.windowed is not None and real.windowed is not None:
            windowed = (drawn.windowed[0], _on_pattern(drawn.windowed[1], real.windowed[1]))
        return replace(real, map=_on_pattern(drawn.map, real.map), windowed=windowed)
    if isinstance(drawn, QuadraticStage) and isinstance(real, QuadraticStage):
        return replace(real, a=_fainted(real.a, drawn.a), b=_fainted(real.b, drawn.b), c=_fainted(real.c, drawn.c))
    if isinstance(drawn, PolynomialStage) and isinstance(real, PolynomialStage):
        rows = np.broadcast_to(real.coefficients, drawn.coefficients.shape)
        return replace(
            real,
            coefficients=_fainted(rows, drawn.coefficients),
            scale=_fainted(np.broadcast_to(real.scale, drawn.scale.shape), drawn.scale),
            shift=_fainted(np.broadcast_to(real.shift, drawn.shift.shape), drawn.shift),
        )
    return real


def _on_pattern(drawn: LinearMap, real: LinearMap) -> LinearMap:
    """The real weights at every entry of the stand-in's map, zeros stored."""
    width = drawn.matrix.shape[1]
    places, given = _places(drawn.matrix, width), _places(real.matrix, width)
    order = np.argsort(places, kind="stable")
    at = np.searchsorted(places, given, sorter=order)
    assert (places[order[at]] == given).all(), "a weight where the shape has none"
    data = np.zeros(len(places))
    data[order[at]] = real.matrix.data
    matrix = sp.csr_array((data, drawn.matrix.indices, drawn.matrix.indptr), shape=drawn.matrix.shape)
    return LinearMap(matrix, _fainted(real.bias, drawn.bias))


def _places(matrix: sp.csr_array, width: int) -> npt.NDArray[np.int64]:
    """row * width + column of every entry, in the order of `matrix.data`."""
    rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int64), np.diff(matrix.indptr))
    return np.asarray(rows * width + matrix.indices, dtype=np.int64)


def _fainted(real: Rows, drawn: Rows) -> Rows:
    """The real values, but not zero where the stand-in's are not."""
    return np.where((real == 0) & (drawn != 0), np.copysign(FAINT, drawn), real)


class Operands:
    """The real operand of each operand of a stand-in's plan; `own` is `program` with paired stages."""

    def __init__(self, program: Program, own: Program) -> None:
        self._found: dict[bytes, Rows] = {}
        for drawn, real in zip(program.stages, own.stages, strict=True):
            layout = program.packing.layouts[drawn.name]
            if isinstance(drawn, LinearStage) and isinstance(real, LinearStage):
                self._linear(program, own, drawn, real, layout)
            elif isinstance(drawn, QuadraticStage) and isinstance(real, QuadraticStage):
                for pair in ((drawn.a, real.a), (drawn.b, real.b), (drawn.c, real.c)):
                    self._elements(layout, *pair)
            elif isinstance(drawn, PolynomialStage) and isinstance(real, PolynomialStage):
                self._polynomial(layout, drawn, real)

    def of(self, drawn: Rows) -> Rows:
        """The operand that stands for the stand-in's; itself where it is a constant of the plan."""
        return self._found.get(drawn.tobytes(), drawn)

    def _put(self, drawn: Rows, real: Rows) -> None:
        """Pair two rows, in the form that a plan stores operands in: a constant one has period 1."""
        if not drawn.any():
            return
        if (drawn == drawn[0]).all():
            assert (real == real[0]).all(), "an operand of the stand-in is constant by chance"
            drawn, real = drawn[:1], real[:1]
        if not real.any():
            real = np.full(len(real), np.copysign(FAINT, drawn.sum()))
        before = self._found.setdefault(drawn.tobytes(), np.ascontiguousarray(real))
        assert np.array_equal(before, real), "two operands of the stand-in are equal by chance"

    def _linear(self, program: Program, own: Program, drawn: LinearStage, real: LinearStage, layout: Layout) -> None:
        packed = program.packing.packed[drawn.name]
        filled = fill(own.packing.operand(real)[0], layout, packed.diagonals, packed.split)
        for pair in ((packed.vectors, filled.vectors), (packed.bias, filled.bias)):
            for one, other in zip(*pair, strict=True):
                self._put(one, other)

    def _elements(self, layout: Layout, drawn: Rows, real: Rows) -> None:
        """Values per element, or one for all."""
        if len(drawn) == 1:
            self._put(drawn, real)
            return
        for one, other in zip(layout.spread(drawn), layout.spread(real), strict=True):
            self._put(one, other)

    def _polynomial(self, layout: Layout, drawn: PolynomialStage, real: PolynomialStage) -> None:
        self._elements(layout, drawn.scale, real.scale)
        self._elements(layout, drawn.shift, real.shift)
        for one, other in zip(_terms(drawn.structure), _terms(real.structure), strict=True):
            assert one.keys() == other.keys(), "polynomials of one shape take different terms"
            for k in one:
                self._elements(layout, one[k], other[k])


def _terms(structure: Structure) -> Iterator[Terms]:
    """The coefficients of every part, in order."""
    yield from _inside(structure.top)


def _inside(leaf: Leaf) -> Iterator[Terms]:
    yield leaf.terms
    if isinstance(leaf, Sum):
        for part, _ in leaf.products:
            yield from _inside(part)
        yield from _inside(leaf.rest)
