"""What calibration says of every tensor of a program, virtual ones included: magnitudes, mean squares, samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..model import CompressedModel
from ..reference import forward_all
from .stage_types import Stage

__all__ = ["Statistics"]

Floats = npt.NDArray[np.float64]
_MARGIN = 1.25  # few samples are kept, and what calibration saw of other tensors is wider


@dataclass(frozen=True)
class Statistics:
    """Of a model's tensors and of those that only its stages make; all arrays are flat per sample."""

    model: CompressedModel = field(repr=False)
    stages: tuple[Stage, ...] = field(repr=False)

    @cached_property
    def inputs(self) -> Floats | None:
        """The calibration inputs that the model kept, (samples, *shape)."""
        return self.model.mean_square("samples")

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

    def _mean_square(self, name: str, size: int) -> Floats:
        known = self.model.mean_square(name)
        if known is not None:
            return known.ravel()
        if name in self.squares:
            return np.asarray(self.squares[name].mean(axis=0))
        return np.full(size, self.magnitudes.get(name, 1.0) ** 2 / 3)
