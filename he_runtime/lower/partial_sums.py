"""How large the partial sums beside pitched copies become: they share the moduli with what is read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .diagonals import PackedLinear
from .pitch import PitchedLayout
from .program import Program
from .stage_types import LinearStage, QuadraticStage
from .statistics import Statistics

__all__ = ["contents", "slot_peaks"]

Floats = npt.NDArray[np.float64]
_MARGIN = 1.25  # samples are few


def slot_peaks(program: Program, facts: Statistics) -> dict[str, float]:
    """Of every tensor in pitched copies, the largest value in any slot: on the calibration samples, with a margin.

    Without samples, a bound: what weights, inputs and biases amount to if all have one sign.
    """
    slots: dict[str, Floats] = {}
    for stage in program.stages:
        layout = program.packing.layouts[stage.name]
        if not isinstance(layout, PitchedLayout):
            continue
        if isinstance(stage, LinearStage):
            packed = program.packing.packed[stage.name]
            slots[stage.name] = contents(packed if facts.samples else _absolute(packed), _input(program, facts, stage))
        else:
            assert isinstance(stage, QuadraticStage)
            a, b, c = (layout.spread(v) for v in (stage.a, stage.b, stage.c))
            if not facts.samples:
                a, b, c = np.abs(a), np.abs(b), np.abs(c)
            slots[stage.name] = (a * slots[stage.input] + b) * slots[stage.input] + c
    return {name: float(np.abs(values).max()) * _MARGIN for name, values in slots.items()}


def contents(packed: PackedLinear, slots: Floats) -> Floats:
    """What a layer of one input and one output ciphertext makes of the slots of its input: (samples, slots) each."""
    parts: dict[int, Floats] = {}
    for baby, giant, vector in zip(
        packed.split.baby.tolist(), packed.split.giant.tolist(), packed.vectors, strict=True
    ):
        part = np.roll(slots, -baby, axis=-1) * vector
        parts[giant] = parts[giant] + part if giant in parts else part
    total = np.sum([np.roll(part, -giant, axis=-1) for giant, part in parts.items()], axis=0)
    for step in packed.diagonals.folds:
        total = total + np.roll(total, -step, axis=-1)
    return np.asarray(total + packed.bias[0])


def _input(program: Program, facts: Statistics, stage: LinearStage) -> Floats:
    """The slots of what a stage reads: of every sample, or one value in all."""
    packing = program.packing
    if not facts.samples:
        return np.full((1, packing.layouts[stage.name].slots), facts.magnitudes.get(stage.input, 1.0))
    values = facts.samples[stage.input]
    layout = packing.input_layout if stage.input == program.source else packing.layouts[stage.input]
    return np.concatenate([values, np.zeros((len(values), 1))], axis=1)[:, layout.slot_map[0]]


def _absolute(packed: PackedLinear) -> PackedLinear:
    return replace(packed, vectors=np.abs(packed.vectors), bias=np.abs(packed.bias))
