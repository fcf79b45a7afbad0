"""Elements that pruning made constant: a neuron without weights is its bias, whatever the input.

Their effect moves into the biases of the layers that read them, so no ciphertext is spent on them: in a packing with one
feature per ciphertext a dead neuron is a ciphertext that is never computed.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import scipy.sparse as sp

from ..errors import DoesNotFit
from ..layout import Layout
from .maps import LinearMap
from .stage_types import JoinStage, LinearStage, MultiplyStage, PolynomialStage, QuadraticStage, Stage, Vector

__all__ = ["Constants", "check_output", "fold_constants"]

# Tensor -> the value of each constant element, NaN where the element depends on the input: (size,)
Constants = dict[str, Vector]


def fold_constants(stages: list[Stage]) -> tuple[list[Stage], Constants]:
    """The stages with constant inputs moved into biases, and which elements of each tensor are constant."""
    constants: Constants = {}
    folded = []
    for stage in stages:
        known = _inputs(stage, constants)
        if isinstance(stage, LinearStage):
            stage = _fold(stage, np.concatenate(known))
        constants[stage.name] = _constant(stage, known)
        folded.append(stage)
    return folded, constants


def check_output(name: str, constants: Constants, layout: Layout) -> None:
    """DoesNotFit where a whole ciphertext of the output depends on no input: no such ciphertext is ever computed."""
    depends = layout.spread(np.isnan(constants[name]).astype(np.float64)).reshape(layout.ciphertexts, layout.period)
    if not depends.any(axis=1).all():
        raise DoesNotFit(
            f"cannot lower layer {name!r}: an output depends on no input, and SEAL has no encryption of a constant; "
            "try pruning it less, or leave that output out"
        )


def _inputs(stage: Stage, constants: Constants) -> list[Vector]:
    """What is constant of every input; nothing of the model's own, whose size follows from the stage that reads it."""
    missing = [name for name in stage.inputs if name not in constants]
    if isinstance(stage, LinearStage | JoinStage):
        total = stage.map.matrix.shape[1] if isinstance(stage, LinearStage) else stage.width
        size = total - sum(len(constants[name]) for name in stage.inputs if name in constants)
        unknown = np.full(size // max(1, len(missing)), np.nan)
    else:
        unknown = np.full(math.prod(stage.shape), np.nan)
    return [constants.get(name, unknown) for name in stage.inputs]


def _constant(stage: Stage, known: list[Vector]) -> Vector:
    """The value of each constant element of the stage's output, NaN elsewhere."""
    if isinstance(stage, LinearStage):
        empty = np.diff(stage.map.matrix.indptr) == 0
        return np.where(empty, stage.map.bias, np.nan)
    if isinstance(stage, MultiplyStage):
        return np.where((known[0] == 0) | (known[1] == 0), 0.0, stage.evaluate(*known))
    if isinstance(stage, JoinStage):
        return np.concatenate(known)[stage.sources]
    if isinstance(stage, QuadraticStage):
        return np.where((stage.a == 0) & (stage.b == 0), stage.c, stage.evaluate(*known))
    if isinstance(stage, PolynomialStage):
        flat = ~stage.coefficients[1:].any(axis=0)
        return np.where(flat, stage.coefficients[0], stage.evaluate(*known))
    return stage.evaluate(*known)


def _fold(stage: LinearStage, known: Vector) -> LinearStage:
    if np.isnan(known).all():
        return stage
    matrix, constant = stage.map.matrix, ~np.isnan(known)
    bias = stage.map.bias + matrix @ np.where(constant, known, 0.0)
    kept = sp.csr_array(matrix @ sp.diags_array((~constant).astype(np.float64)))
    return replace(stage, map=LinearMap(kept, bias).without_zeros())
