"""Polynomial stages -> ops, ciphertext by ciphertext, along the structure and the scales found beforehand.

Coefficients may differ between elements; what is zero in a whole ciphertext is left out there, and a power that nothing
needs is not made.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..plan import Kind
from .levels import readers_of
from .lowering import Carried, Lowering, Note
from .polynomial import Leaf, Sum, Terms
from .polynomial_scales import Path, PolynomialScales
from .program import Values
from .stage_types import PolynomialStage

__all__ = ["polynomial"]

Vector = npt.NDArray[np.float64]
_MINUS_ONE, _MINUS_TWO = np.array([-1.0]), np.array([-2.0])


def polynomial(low: Lowering, stage: PolynomialStage) -> Values:
    """ceil(log2 degree) levels; products, relinearizations and rescales as the structure says."""
    spread = _spreader(low, stage)
    shared = stage.is_mapped and len(readers_of(low.stages, stage.input)) > 1
    results = {}
    for index, value in low.tensors[stage.input].items():
        scales, mapped = _mapped(low, stage, value, spread(stage.scale)[index], spread(stage.shift)[index])
        run = _Evaluation(low, stage, scales, mapped, index, spread)
        found, constant = run.sum(stage.structure.top, stage.structure.depth - 1, ())
        if found is not None:
            results[index] = low.shifted(stage.layer, found, constant)
            if not shared:
                low.carried[results[index]] = Carried(mapped, stage.name, index)
    return results


def _spreader(low: Lowering, stage: PolynomialStage) -> Callable[[Vector], Vector]:
    """Coefficients (size,) or (1,) -> one row per ciphertext; what is the same for all stays one exact constant."""
    count = low.packing.layouts[stage.name].ciphertexts

    def spread(values: Vector) -> Vector:
        return low.spread(stage.name, values) if len(values) > 1 else np.broadcast_to(values, (count, 1))

    return spread


def _mapped(
    low: Lowering, stage: PolynomialStage, value: int, scale: Vector, shift: Vector
) -> tuple[PolynomialScales, int]:
    """The scales of the polynomial, and its input mapped onto [-2, 2] at the scale and level where it starts."""
    e, level, layer = low.emission, low.levels[stage.name], stage.layer
    if stage.is_mapped:
        scales = low.targets.polynomial(stage)
        if e.reaches(value, level, scales.input):
            return scales, e.aligned(value, level, scales.input, layer)
    if e.values[value].level > level:
        # One of the levels that the value has to fall is a rescale, which leaves room for the finest scale.
        scales = low.targets.polynomial(stage)
        product = scales.input * low.params.primes[level + 1]
        mapped = low.brought(layer, e.lowered(value, level + 1, layer), scale, product)
        mapped = e.op(Kind.RESCALE, layer, mapped, scale=scales.input)
    else:
        scales = low.targets.polynomial(stage, e.values[value].scale)
        mapped = low.brought(layer, value, scale, scales.input)
    return scales, low.shifted(layer, mapped, shift)


class _Evaluation:
    """The polynomial of one ciphertext."""

    def __init__(
        self,
        low: Lowering,
        stage: PolynomialStage,
        scales: PolynomialScales,
        value: int,
        index: int,
        spread: Callable[[Vector], Vector],
    ) -> None:
        self.low, self.stage, self.scales, self.index, self.spread = low, stage, scales, index, spread
        self.emission, self.layer, self.level = low.emission, stage.layer, low.levels[stage.name]
        self.powers = {1: value}

    def at(self, k: int, height: int) -> int:
        """C_k mod-switched to a height."""
        return self.emission.lowered(self._power(k), self.level - height, self.layer)

    def _power(self, k: int) -> int:
        if k not in self.powers:
            power = self.stage.structure.powers[k]
            height, e = power.height - 1, self.emission
            x, y = self.at(power.left, height), self.at(power.right, height)
            product = e.op(Kind.MUL, self.layer, x, y) if x != y else e.op(Kind.SQUARE, self.layer, x)
            if power.difference:
                difference = self.at(power.difference, height)
                taken = self.low.brought(self.layer, difference, _MINUS_ONE, e.values[product].scale)
                product = e.op(Kind.ADD, self.layer, product, taken)
            made = self._rescaled(product, self.scales.powers[k])
            self.powers[k] = made if power.difference else self.low.shifted(self.layer, made, _MINUS_TWO)
            self._note(f"C{k}", {k: np.ones(1)}, self.powers[k])
        return self.powers[k]

    def _note(self, label: str, terms: Terms, value: int) -> None:
        self.low.notes[value] = Note(self.stage.name, label, terms, self.index)

    def _rescaled(self, value: int, scale: float) -> int:
        e = self.emission
        if e.values[value].size > 2:
            value = e.op(Kind.RELINEARIZE, self.layer, value)
        return e.op(Kind.RESCALE, self.layer, value, scale=scale)

    def _terms(self, terms: Terms, wanted: frozenset[int], height: int, scale: float) -> list[int]:
        """The products of some terms' coefficients and powers, at a height and a scale."""
        rows = {k: self.spread(terms[k])[self.index] for k in sorted(wanted)}
        return [self.low.brought(self.layer, self.at(k, height), row, scale) for k, row in rows.items() if row.any()]

    def _total(self, values: list[int]) -> int | None:
        total = None
        for value in values:
            total = value if total is None else self.emission.op(Kind.ADD, self.layer, total, value)
        return total

    def _constant(self, terms: Terms) -> Vector:
        return self.spread(terms[0])[self.index] if 0 in terms else np.zeros(1)

    def _leaf(self, leaf: Leaf, height: int, path: Path) -> tuple[int | None, Vector]:
        """The leaf as it enters a product at `height` + 1, without its constant, and that constant."""
        late, scale = self.scales.late(leaf, height, path), self.scales.parts[path]
        early = self._terms(leaf.terms, late, height, scale * self.scales.prime(height))
        found = [] if not early else [self._rescaled(self._total(early), scale)]  # type: ignore[arg-type]
        found += self._terms(leaf.terms, frozenset(leaf.terms) - late - {0}, height + 1, scale)
        return self._total(found), self._constant(leaf.terms)

    def sum(self, whole: Sum, height: int, path: Path) -> tuple[int | None, Vector]:
        """A sum after its rescale, without its constant, and that constant."""
        e, scale = self.emission, self.scales.parts[path]
        product = scale * self.scales.prime(height)
        found = []
        for index, (part, giant) in enumerate(whole.products):
            evaluate = self.sum if isinstance(part, Sum) else self._leaf
            value, constant = evaluate(part, height - 1, (*path, index))  # type: ignore[arg-type]
            if value is not None:
                factor = self.low.shifted(self.layer, value, constant)
                self._note(".".join(map(str, (*path, index))), part.terms, factor)
                found.append(e.op(Kind.MUL, self.layer, factor, self.at(giant, height), scale=product))
            elif constant.any():
                found.append(self.low.brought(self.layer, self.at(giant, height), constant, product))
        found += self._terms(whole.rest.terms, frozenset(whole.rest.terms) - {0}, height, product)
        total = self._total(found)
        return None if total is None else self._rescaled(total, scale), self._constant(whole.rest.terms)
