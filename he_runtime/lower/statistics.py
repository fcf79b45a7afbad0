"""What calibration says of every tensor of a program, virtual ones included: magnitudes, mean squares, samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from numpy.polynomial.chebyshev import chebder, chebval

from ..model import CompressedModel
from ..reference import forward_all
from .lowering import Note
from .stage_types import PolynomialStage, Stage

__all__ = ["Statistics"]

Floats = npt.NDArray[np.float64]
_MARGIN = 1.25  # few samples are kept, and what calibration saw of other tensors is wider


@dataclass(frozen=True)
class Statistics:
    """Of a model's tensors and of those that only its stages make; all arrays are flat per sample."""

    model: CompressedModel = field(repr=False)
    stages: tuple[Stage, ...] = field(repr=False)
    most_samples: int = 64
    _inside: dict[tuple[str, str, bool], Floats] = field(default_factory=dict, repr=False)

    @cached_property
    def inputs(self) -> Floats | None:
        """The calibration inputs that the model kept, `most_samples` of them, (samples, *shape)."""
        kept = self.model.mean_square("samples")
        return None if kept is None else kept[: self.most_samples]

    @cached_property
    def samples(self) -> Mapping[str, Floats]:
        """Every tensor on those inputs, (samples, size); nothing where the model kept none."""
        if self.inputs is None:
            return {}
        values = {k: v.reshape(len(v), -1) for k, v in forward_all(self.model, self.inputs).items()}
        for stage in self.stages:
            if stage.name not in values:
                values[stage.name] = stage.evaluate(*(values[name] for name in stage.inputs))
        return values

    @cached_property
    def squares(self) -> Mapping[str, Floats]:
        """The samples squared, (samples, size)."""
        return {name: values**2 for name, values in self.samples.items()}

    @cached_property
    def magnitudes(self) -> Mapping[str, float]:
        """The largest value that calibration saw of each tensor."""
        found = {name: max(abs(low), abs(high)) for name, (low, high) in self.model.ranges.items()}
        virtual = {name: values for name, values in self.samples.items() if name not in found}
        return {name: float(np.abs(values).max()) * _MARGIN for name, values in virtual.items()} | found

    @cached_property
    def mean_squares(self) -> Mapping[str, Floats]:
        """Calibrated mean squares, (1, size); a third of the squared magnitude where there are none."""
        sizes = {self.model.input.name: int(np.prod(self.model.input.shape))}
        sizes |= {stage.name: int(np.prod(stage.shape)) for stage in self.stages}
        return {name: self._mean_square(name, size)[None] for name, size in sizes.items()}

    def inside(self, note: Note, mean: bool) -> Floats:
        """Squares of a value inside a polynomial: (samples, size), or their mean (1, size)."""
        key = (note.stage, note.label, mean)
        if key not in self._inside:
            self._inside[key] = self._squares_inside(note, mean)
        return self._inside[key]

    def _squares_inside(self, note: Note, mean: bool) -> Floats:
        mapped = self._mapped(note.stage)
        if mapped is None:  # spread over the interval, the powers are orthogonal and of mean square 2
            ones = np.ones(math.prod(self._stage(note.stage).shape))
            return np.asarray(sum(v**2 * (2 if k else 1) * ones for k, v in note.terms.items()))[None]
        rows = [note.terms.get(k, np.zeros(1)) * (2 if k else 1) for k in range(max(note.terms) + 1)]
        return _squares(mapped, np.stack(np.broadcast_arrays(*rows)), mean)

    def slopes(self, stage: str, mean: bool) -> Floats:
        """Squared derivatives of a polynomial by its mapped input: (samples, size), or their mean (1, size)."""
        mapped = self._mapped(stage)
        coefficients = chebder(self._stage(stage).coefficients) / 2
        if mapped is None:
            weights = np.full(len(coefficients), 0.5)
            weights[0] = 1.0
            ones = np.ones(math.prod(self._stage(stage).shape))
            return np.asarray((coefficients**2 * weights[:, None]).sum(axis=0) * ones)[None]
        return _squares(mapped, coefficients, mean)

    def _stage(self, name: str) -> PolynomialStage:
        return next(s for s in self.stages if s.name == name and isinstance(s, PolynomialStage))

    def _mapped(self, name: str) -> Floats | None:
        """A polynomial's input on [-2, 2] for every sample."""
        stage = self._stage(name)
        x = self.samples.get(stage.input)
        return None if x is None else stage.scale * x + stage.shift

    def _mean_square(self, name: str, size: int) -> Floats:
        known = self.model.mean_square(name)
        if known is not None:
            return known.ravel()
        if name in self.squares:
            return np.asarray(self.squares[name].mean(axis=0))
        return np.full(size, self.magnitudes.get(name, 1.0) ** 2 / 3)


def _squares(mapped: Floats, coefficients: Floats, mean: bool) -> Floats:
    """Squares of a Chebyshev series at samples on [-2, 2]: (samples, size), or their mean (1, size)."""
    squares = np.asarray(chebval(mapped / 2, coefficients, tensor=False), dtype=np.float64) ** 2
    return np.asarray(squares.mean(axis=0))[None] if mean else squares
